"""The trials of a search as a table, and the choices of many runs."""

from __future__ import annotations

from datadream.report import write_report
from datadream.report.search import choice_table, trial_tables
from datadream.run.layout import SearchRecord, classifier_marker
from datadream.run.store import RunStore
from tests.report.fabricate import write_search

RATES = (1e-1, 1e-3, 1e-5)


def searched(make_run, name: str, setting: str, best: int, own: float = RATES[1], **changes):
    rates = {"classify__search__learning_rates": RATES, "classify__learning_rate": own}
    store, config = make_run(name, {setting: 80.0}, **rates, **changes)
    write_search(store, setting, RATES, best, unlisted=None if own in RATES else own)
    return store, config


def test_trials_stand_in_the_order_of_the_config_by_rung(make_run):
    cell = searched(make_run, "run", "real", best=1)
    (table,) = trial_tables([cell])
    assert (table.setting, table.knobs, table.rungs) == ("real", ["learning_rate"], ["33 steps", "100 steps"])
    assert table.rows == [
        (["0.1"], ["diverged", ""], False),
        (["0.001"], ["71.0", "82.0"], True),
        (["1e-05"], ["72.0", "82.0"], False),
    ]
    assert choice_table([cell]) is None


def test_own_knobs_that_are_not_listed_stand_last_and_may_be_chosen(make_run):
    cell = searched(make_run, "run", "real", best=1, own=1e-4)
    (table,) = trial_tables([cell])
    assert table.rows == [
        (["0.1"], ["diverged", ""], False),
        (["0.001"], ["71.0", "82.0"], False),
        (["1e-05"], ["72.0", "82.0"], False),
        (["0.0001"], ["60.0", "90.0"], True),
    ]


def test_whether_images_are_mirrored_reads_yes_or_no(make_run):
    store, config = make_run("run", {"real": 80.0}, classify__search__flips=(False, True))
    trials = [{"knobs": {"augment.flip": flip}, "steps": 100, "val_top1": 70.0 + flip} for flip in (True, False)]
    name = classifier_marker("real")
    search = SearchRecord(**trials[0], n_trials=2, trials=trials)
    store.write_json(name, store.read_json(name) | {"search": search.to_json()})
    (table,) = trial_tables([(store, config)])
    assert (table.knobs, table.rows) == (["augment.flip"], [(["no"], ["70.0"], False), (["yes"], ["71.0"], True)])


def test_a_table_of_runs_has_a_row_for_each_choice(make_run):
    cells = [
        searched(make_run, f"{setting}-{seed}", setting, best, seed=seed)
        for seed, best in ((1, 1), (0, 2))
        for setting in ("real", "real+synthetic")
    ]
    assert trial_tables(cells) == []
    table = choice_table(cells)
    assert [(row.setting, row.shots, row.seed, row.knobs) for row in table.rows] == [
        ("real", 4, 0, ["1e-05"]),
        ("real", 4, 1, ["0.001"]),
        ("real+synthetic, datadream-cls", 4, 0, ["1e-05"]),
        ("real+synthetic, datadream-cls", 4, 1, ["0.001"]),
    ]
    assert (table.knobs, table.has_images) == (["learning_rate"], False)


def test_choices_stand_by_their_number_of_images(make_run):
    cells = [
        searched(make_run, f"{setting}-{n}", setting, 1, generate__images_per_class=n)
        for setting, n in (("real", 30), ("synthetic", 30), ("synthetic", 10))
    ]
    table = choice_table(cells)
    assert [(row.setting.split(",")[0], row.images_per_class) for row in table.rows] == [
        ("real", 0),
        ("synthetic", 10),
        ("synthetic", 30),
    ]
    assert table.has_images
    assert not choice_table([cells[0], cells[2]]).has_images


def test_what_was_not_searched_has_no_table(make_run):
    cells = [make_run("a", {"real": 80.0}), make_run("b", {"real": 80.0}, seed=1)]
    assert trial_tables(cells[:1]) == []
    assert choice_table(cells) is None


def test_the_page_and_the_records_tell_a_searched_run_from_a_fixed_one(make_run):
    store, config = searched(make_run, "run", "real", best=2)
    write_report(store, [(store, config)], config)
    html = store.read_bytes("report/index.html").decode()
    assert "learning_rate searched for each run and setting" in html
    assert "also chose the searched knobs and which weights were kept" in html
    assert [record["chosen_knobs"] for record in store.read_json("metrics.json")] == [{"learning_rate": 1e-5}]
    fixed, config = make_run("fixed", {"real": 80.0})
    write_report(fixed, [(fixed, config)], config)
    assert "searched" not in RunStore(fixed.root).read_bytes("report/index.html").decode().split("<details>")[0]
    assert [record["chosen_knobs"] for record in fixed.read_json("metrics.json")] == [None]
