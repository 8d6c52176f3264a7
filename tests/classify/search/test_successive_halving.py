"""Rungs, and what goes on to the next: the same whatever the order in which trials end."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from datadream import recipes
from datadream.classify.schedule import schedule_for
from datadream.classify.search.stage import own_knobs
from datadream.classify.search.successive_halving import (
    OWN,
    Search,
    Trial,
    candidates,
    found_knobs,
    ranked,
    rung_steps,
)
from datadream.classify.stage import ClassifierJob
from datadream.config import ClassifyConfig
from datadream.run.layout import TrialRecord
from datadream.run.store import RunStore

RATES = (1e-1, 1e-2, 1e-3, 1e-4)
STEPS = 900


def config(**search) -> ClassifyConfig:
    grid = {"learning_rates": RATES, "weight_decays": (0.0, 0.1)}
    own = {"learning_rate": 1e-2, "weight_decay": 0.1}
    return ClassifyConfig(steps=STEPS, warmup_steps=90, eval_every=250, search=grid | search, **own)


def record(store: RunStore, trial: Trial, val_top1: float | None) -> None:
    finished = {"number": trial.number, "knobs": trial.knobs, "steps": trial.steps, "val_top1": val_top1}
    store.write_json(trial.marker, finished)


@pytest.mark.parametrize(
    ("grace", "reduction", "rungs"),
    [(1.0, 3, [900]), (0.3, 3, [300, 900]), (0.1, 3, [100, 300, 900]), (0.1, 2, [112, 225, 450, 900])],
)
def test_rungs_reach_from_the_grace_to_all_steps(grace, reduction, rungs):
    assert rung_steps(900, grace, reduction) == rungs


def test_few_steps_make_few_rungs():
    assert rung_steps(2, 0.01, 3) == [2]


def test_the_best_go_on_whatever_the_order_in_which_trials_end(tmp_path):
    found = []
    for way, order in enumerate((1, -1)):
        store = RunStore(str(tmp_path / str(way)))
        search, rungs = Search(store, "real", config(grace=0.3), STEPS), []
        while trials := search.next_trials():
            rungs.append([(trial.steps, trial.number) for trial in trials])
            for trial in trials[::order]:
                record(store, trial, 50.0 + 10 * (trial.knobs["learning_rate"] == 1e-3) + trial.steps / 100)
        # Two of eight, and the config's own.
        assert rungs == [[(300, n) for n in range(8)], [(900, 0), (900, 4), (900, 5)]]
        found.append(found_knobs(store, "real"))
    assert found[0] == found[1]
    # The two are equal: the first that is listed.
    assert found[0].knobs == {"learning_rate": 1e-3, "weight_decay": 0.0}
    assert (found[0].val_top1, found[0].steps, found[0].n_trials) == (69.0, 900, 11)
    assert len(found[0].trials) == 11


def test_the_knobs_of_the_config_compete_to_the_end_and_win_when_equal(tmp_path):
    for own_top1, chosen in ((70.0, 1e-2), (69.9, 1e-3)):
        store = RunStore(str(tmp_path / str(own_top1)))
        search, steps = Search(store, "real", config(), STEPS), set()
        while trials := search.next_trials():
            for trial in trials:
                is_own = trial.knobs == {"learning_rate": 1e-2, "weight_decay": 0.1}
                steps |= {trial.steps} if is_own else set()
                # Worst of all in every short training.
                own = own_top1 if trial.steps == 900 else 0.0
                record(store, trial, own if is_own else 70.0 * (trial.knobs["learning_rate"] == 1e-3))
        assert steps == {100, 900}
        assert found_knobs(store, "real").knobs["learning_rate"] == chosen


def test_knobs_that_are_not_listed_are_a_candidate_too():
    rates = tuple({"learning_rate": rate} for rate in (1e-3, 1e-4))
    config = ClassifyConfig(learning_rate=1e-5, search={"learning_rates": (1e-3, 1e-4)})
    assert candidates(config) == [{"learning_rate": 1e-5}, *rates]
    assert candidates(config.model_copy(update={"learning_rate": 1e-4})) == list(rates[::-1])


def test_only_what_is_not_recorded_is_run(tmp_path):
    store = RunStore(str(tmp_path))
    search = Search(store, "real", config(), STEPS)
    first, *others = search.next_trials()
    record(store, first, 50.0)
    assert search.next_trials() == others
    assert found_knobs(store, "real") is None


def test_what_diverged_is_last_and_a_search_of_nothing_else_fails(tmp_path):
    store = RunStore(str(tmp_path))
    accuracies = enumerate((None, 0.0, 9.0))
    records = [TrialRecord(number=number, knobs={}, steps=1, val_top1=top1) for number, top1 in accuracies]
    assert [record.number for record in ranked(records)] == [2, 1, 0]
    search = Search(store, "real", config(), STEPS)
    for trial in search.next_trials():
        record(store, trial, None)
    with pytest.raises(RuntimeError, match="real: training diverged under every combination"):
        search.next_trials()


def test_where_all_that_went_on_diverged_the_next_best_goes_on(tmp_path):
    """A rate that is fine for a few steps may not be for all, and others were listed."""
    store = RunStore(str(tmp_path))
    search = Search(store, "real", config(learning_rates=(1e-2, 1e-3, 1e-4), weight_decays=(0.1,)), STEPS)
    short = {0: 70.0, 1: 60.0, 2: None}
    while trials := search.next_trials():
        for trial in trials:
            record(store, trial, short[trial.number] if trial.steps < STEPS else {0: None, 1: 75.0}[trial.number])
    found = found_knobs(store, "real")
    assert (found.val_top1, found.knobs["learning_rate"], found.n_trials) == (75.0, 1e-3, 6)


def test_a_short_trial_has_a_whole_schedule():
    trial = Trial("real", 0, {"learning_rate": 1e-3}, steps=100)
    assert trial.schedule(schedule_for(config(), n_images=0)) == {"steps": 100, "warmup_steps": 10, "eval_every": 100}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"learning_rates": [1e-3]}, "one combination is no choice"),
        ({"learning_rates": [1e-3, 1e-4, 1e-3]}, "a value is listed twice"),
        ({"learning_rates": [1e-3, 0.0]}, "greater than 0"),
    ],
)
def test_a_grid_without_a_choice_is_refused(search, message):
    with pytest.raises(ValueError, match=message):
        ClassifyConfig(search=search)


def test_combinations_are_all_products_of_what_is_listed():
    knobs = [tuple(combination.values()) for combination in config().search.combinations]
    assert knobs == list(itertools.product(RATES, (0.0, 0.1)))
    assert ClassifyConfig().search.combinations == []
    mixes = ClassifyConfig(search={"mixes": ["none", "both"], "weight_decays": [0.5]}).search.combinations
    assert mixes == [{"weight_decay": 0.5, "mixup": beta, "cutmix": beta} for beta in (0.0, 1.0)]


def test_records_of_other_knobs_are_not_taken_for_a_trial(tmp_path):
    """Earlier versions numbered the combinations without the config's own knobs."""
    store = RunStore(str(tmp_path))
    search = Search(store, "real", config(), STEPS)
    first, second, *others = search.next_trials()
    for trial in (second, *others):
        record(store, trial, 50.0)
    store.write_json(first.marker, {"knobs": second.knobs, "number": 0, "steps": first.steps, "val_top1": 99.0})
    assert search.next_trials() == [first]


@pytest.mark.parametrize(("own", "expected"), [(None, [False, True]), (False, [False, True]), (True, [True, False])])
def test_mirroring_is_chosen_like_other_knobs(tmp_path, own, expected):
    flips = ClassifyConfig(augment={"flip": own}, search={"flips": [False, True], "grace": 1})
    assert candidates(flips) == [{"augment.flip": flip} for flip in expected]
    store = RunStore(str(tmp_path))
    for trial in Search(store, "real", flips, STEPS).next_trials():
        record(store, trial, 60.0 + 10 * trial.knobs["augment.flip"])
    assert Search(store, "real", flips, STEPS).next_trials() == []
    assert found_knobs(store, "real").knobs == {"augment.flip": True}


@pytest.mark.parametrize(("asked", "trained"), [(None, True), (False, False)])
def test_mirroring_that_is_unset_is_what_the_data_set_allows(few_shot, tmp_path, asked, trained):
    own = recipes.digits(**{"classify.augment.flip": asked, "classify.search": {"flips": [False, True]}})
    job = ClassifierJob(RunStore(str(tmp_path)), replace(few_shot, flippable=True), own, RunStore(str(tmp_path)))
    assert candidates(own_knobs(job))[OWN] == {"augment.flip": trained}
