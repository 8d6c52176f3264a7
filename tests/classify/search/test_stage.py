"""A search on real Ray: what it chooses, and what it leaves for the next start and for the final training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datadream.classify.ingest import feed
from datadream.classify.search import stage as sweep
from datadream.classify.search.stage import choose_knobs
from datadream.classify.stage import ClassifierJob, train_classifiers
from datadream.run.store import RunStore
from datadream.runtime.workers import Workers
from tests.classify.colors import break_image, publish

GRID = {"learning_rates": [1e-7, 1e-2, 1e30], "grace": 0.3}
GOOD = {"learning_rate": 1e-2}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def searching(config):
    return config.updated(
        {
            "classify.settings": ["zero-shot", "real", "synthetic"],
            "classify.learning_rate": 1e-7,
            "classify.search": GRID,
        }
    )


@pytest.fixture(scope="module")
def runs(local_ray, tmp_path_factory, few_shot, searching) -> tuple[RunStore, RunStore]:
    """Two that two workers searched for together: the other has no validation photos, and more images than fit in
    memory, so we say."""
    run, other = (RunStore(str(tmp_path_factory.mktemp(name))) for name in ("run", "other"))
    publish(run)
    publish(other, "webdataset", n_per_class=21, shards=3, ragged=True)
    of_folds = {"classify.settings": ["real+synthetic"], "classify.search": {**GRID, "grace": 1.0}}
    jobs = [
        ClassifierJob(run, few_shot, searching, run),
        ClassifierJob(other, replace(few_shot, val=()), searching.updated(of_folds), other),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "MEMORY_LIMIT", 60 * 3 * 16**2)
        choose_knobs(run, jobs, Workers(2, threads=1, use_gpu=False))
    return run, other


@pytest.fixture
def run(runs) -> RunStore:
    return runs[0]


def test_the_better_of_two_learning_rates_is_chosen_and_what_diverged_is_not(run):
    """The config's own, too low, goes on to the end too."""
    for setting in ("real", "synthetic"):
        found = run.read_json(f"classifier/{setting}/search.json")
        assert found["knobs"] == GOOD
        assert found["val_top1"] > found["trials"][1]["val_top1"] + 20
        assert [(trial["knobs"]["learning_rate"], trial["steps"]) for trial in found["trials"]] == [
            (1e-2, 10),
            (1e-7, 10),
            (1e30, 10),
            (1e-2, 30),
            (1e-7, 30),
        ]
        assert found["trials"][2]["val_top1"] is None
    assert run.markers("classifier/zero-shot") == set()
    assert not [path for path in run.fs.ls(run.root, detail=False) if ".ray-train" in path]


def test_folds_of_the_shots_choose_while_images_stream(runs):
    """A stream for every fold."""
    found, trial = (
        runs[1].read_json(f"classifier/real+synthetic/{name}.json") for name in ("search", "search/000030-0001")
    )
    assert found["knobs"] == GOOD
    assert (trial["chosen_by"], [reading["step"] for reading in trial["curve"]]) == ("folds", [10, 20, 30])


def test_finished_trials_are_not_run_again_and_one_worker_finds_the_same(run, few_shot, searching, monkeypatch):
    """As after a kill that left one trial and every choice undone."""
    before = {setting: run.read_json(f"classifier/{setting}/search.json") for setting in ("real", "synthetic")}
    lost = "classifier/real/search/000010-0001.json"
    for name in (lost, "classifier/real/search.json", "classifier/synthetic/search.json"):
        run.remove(name)
    ran, real = [], sweep._run_rung
    monkeypatch.setattr(sweep, "_run_rung", lambda store, units, *rest: ran.extend(units) or real(store, units, *rest))
    choose_knobs(run, [ClassifierJob(run, few_shot, searching, run)], Workers(1, threads=1, use_gpu=False))
    assert [(unit.payload.trial.setting, unit.marker) for unit in ran] == [("real", lost)]
    assert {setting: run.read_json(f"classifier/{setting}/search.json") for setting in before} == before


def test_the_final_classifier_is_trained_as_chosen_and_says_so(run, few_shot, searching):
    """Which its own learning rate, far too low, could not do."""
    job = ClassifierJob(run, few_shot, searching.updated({"classify.settings": ["zero-shot", "real"]}), run)
    train_classifiers(run, [job], Workers(1, threads=1, use_gpu=False))
    metrics = {name: run.read_json(f"classifier/{name}/metrics.json") for name in ("zero-shot", "real")}
    assert metrics["real"]["top1"] > 80
    assert (metrics["real"]["search"]["knobs"], metrics["real"]["search"]["n_trials"]) == (GOOD, 5)
    assert "search" not in metrics["zero-shot"]


def test_a_trials_failure_is_the_drivers_and_is_not_repeated(tmp_path, few_shot, searching):
    store = RunStore(str(tmp_path / "run"))
    photo = tmp_path / "broken.png"
    photo.write_bytes(b"no image")
    broken = replace(few_shot, shots=((str(photo),), *few_shot.shots[1:]))
    publish(store)
    image = break_image(store)
    job = ClassifierJob(store, broken, searching.updated({"classify.settings": ["real", "synthetic"]}), store)
    with pytest.raises(RuntimeError, match="6 of 6 trials of the search failed") as caught:
        choose_knobs(store, [job], Workers(2, threads=1, use_gpu=False))
    reasons = str(caught.value).splitlines()[1:]
    assert len(reasons) == 6
    for reason in reasons:
        assert (photo.name if reason.startswith("  real, 10 steps with ") else f"image '{image}'") in reason
