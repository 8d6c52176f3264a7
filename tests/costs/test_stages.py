"""What a run takes: units are counted as the stages count them, and more workers or faster ones never take longer."""

import random
from dataclasses import replace

import pytest

from datadream import recipes
from datadream.costs.constants import GPUS, Cluster, constants_of
from datadream.costs.stages import image_seconds, imagined, queue_seconds, stages_of
from datadream.experiment.experiment import Experiment
from datadream.run.cell import cells_of
from datadream.run.layout import DATASET, adapter_marker, classifier_marker, search_marker, trial_marker
from datadream.run.store import RunStore

H100 = Cluster(8, "h100")


def counted(cells, cluster: Cluster = H100) -> dict[str, int]:
    return {stage.name: stage.n_units for stage in stages_of(cells, cluster)}


def test_units_are_those_of_the_plan():
    assert counted(imagined(recipes.paper(), 1000)) == {
        "adapt": 1000,
        "generate": 10_000,  # 1,000 classes of 500 images, 50 in a chunk
        "publish": 100,  # 500 shards of 1,000 images, five in a window
        "search": 48,  # 16 combinations for each of three settings
        "classify": 4,
    }
    assert counted(imagined(recipes.paper(method="datadream-dset"), 10))["adapt"] == 1
    texts = {"data.captions": "captions.yaml", "data.descriptions": "descriptions.yaml"}
    for method in ("disef", "language"):
        assert counted(imagined(recipes.paper(method=method, **texts), 10))["generate"] >= 100
    of_code = imagined(recipes.paper_code(method="zero-shot"), 3)
    assert counted(of_code) == {"generate": 30, "publish": 1, "classify": 4}


def test_trials_are_those_of_every_rung_that_are_not_finished(tmp_path):
    search = {"learning_rates": [1e-4, 1e-3, 1e-2], "mixes": ["none", "both"], "grace": 0.3}
    classify = {"settings": ["real"], "steps": 90, "search": search}
    (cell,) = cells_of(recipes.digits(method="none", classify=classify), RunStore(str(tmp_path)))
    # Six combinations for 30 steps, then the best two and the config's own for 90.
    assert counted([cell]) == {"search": 9, "classify": 1}
    for number in range(5):
        cell.store.write_json(trial_marker("real", 30, number), {})
    assert counted([cell])["search"] == 4
    cell.store.write_json(search_marker("real"), {})
    assert counted([cell]) == {"classify": 1}


def test_a_closed_form_reads_its_views_and_those_of_the_folds_that_choose_its_weight(tmp_path):
    def read(folds: int) -> float:
        knobs = {"settings": ["gda-real"], "folds": folds}
        (cell,) = cells_of(recipes.digits(method="none", classify=knobs), RunStore(str(tmp_path)))
        cell.few_shot = replace(cell.few_shot, val=())
        (stage,) = stages_of([cell], H100)
        return stage.work / constants_of(cell.config, H100).read - len(cell.few_shot.test)

    # Ten views of 40 shots; with two folds, ten of 20 shots in each, and the shots that were left out.
    assert read(0) == pytest.approx(400)
    assert read(2) == pytest.approx(400 + 2 * 200 + 40)


def test_a_table_counts_all_of_its_runs():
    cells = imagined(recipes.digits_table(), 10)
    found = counted(cells)
    # Three seeds: per-class adapters of one method and one adapter of another.
    assert found["adapt"] == 3 * (10 + 1)
    assert found["publish"] == 3 * 4
    assert found["classify"] == sum(len(cell.config.classify.settings) for cell in cells)


def test_filters_are_counted_by_what_must_pass_and_not_by_what_may_be_asked_for():
    changes = {"generate.images_per_class": 100, "generate.select.label_top_k": 1}
    assert counted(imagined(recipes.paper(**changes), 2))["generate"] == 4


def test_of_a_run_that_was_begun_what_is_left_is_counted(tmp_path):
    store = RunStore(str(tmp_path))
    for marker in (adapter_marker("class-00003"), "chunks/00003-000000.json", classifier_marker("real")):
        store.write_json(marker, {})
    experiment = Experiment(recipes.digits(), store.url)
    assert counted(experiment.cells) == {"adapt": 9, "generate": 39, "publish": 1, "classify": 3}
    left = {stage.stage: stage.total - stage.done for stage in experiment.status()}
    assert left == {"adapt": 9, "generate": 39 * 50, "publish": 1, "classify": 3}


def test_a_finished_run_has_nothing_left(tmp_path):
    store = RunStore(str(tmp_path))
    cells = cells_of(recipes.digits(method="zero-shot", classify={"settings": ["real"]}), store)
    for marker in (*(chunk.marker for chunk in cells[0].chunks), DATASET, classifier_marker("real")):
        store.write_json(marker, {})
    assert stages_of(cells, H100) == []


@pytest.mark.parametrize("method", ["datadream-cls", "datadream-dset", "is-synth"])
@pytest.mark.parametrize("gpu", ["h100", None])
def test_more_workers_take_no_longer_and_none_beyond_the_useful_ones_help(method, gpu):
    cells = imagined(recipes.paper(method=method), 20)
    before = stages_of(cells, Cluster(1, gpu))
    for count in (2, 3, 4, 8, 20, 64, 512):
        stages = stages_of(cells, Cluster(count, gpu))
        for stage, fewer in zip(stages, before, strict=True):
            assert stage.seconds <= fewer.seconds + 1e-9, (stage.name, count)
        before = stages
    for number, stage in enumerate(before):
        at_most = stages_of(cells, Cluster(stage.useful, gpu))[number]
        assert stage.seconds == pytest.approx(at_most.seconds, rel=0.01), stage.name


def test_faster_gpus_and_fewer_images_take_less():
    cells = imagined(recipes.paper_code(), 8)
    seconds = {name: sum(stage.seconds for stage in stages_of(cells, Cluster(1, name))) for name in GPUS}
    by_speed = sorted(GPUS, key=lambda name: GPUS[name].peak)
    assert sorted(seconds.values(), reverse=True) == [seconds[name] for name in by_speed]
    few = stages_of(imagined(recipes.paper_code(**{"generate.images_per_class": 50}), 8), H100)
    many = stages_of(imagined(recipes.paper_code(), 8), H100)
    assert [a.n_bytes <= b.n_bytes and a.seconds <= b.seconds for a, b in zip(few, many, strict=True)] == [True] * 4


def test_presets_take_what_their_steps_take():
    seconds = {
        preset: image_seconds(config := recipes.paper(**{"generate.preset": preset}), constants_of(config, H100))
        for preset in ("exact", "fast", "turbo")
    }
    assert seconds["exact"] == pytest.approx(0.189, rel=0.01)  # 82.1 TFLOP at 44 % of 989 TFLOP/s
    assert seconds["exact"] > 3 * seconds["fast"] > 3 * seconds["turbo"]


def test_a_queue_ends_with_its_last_piece_and_never_later_for_a_worker_more():
    assert queue_seconds([1.0] * 10, 4) == 3
    assert queue_seconds([8, 1, 1], 2) == 8
    assert queue_seconds([], 3) == 0
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.random() for _ in range(draw.randrange(1, 30))]
        ends = [queue_seconds(lengths, count) for count in range(1, 12)]
        assert ends == sorted(ends, reverse=True)
        assert all(end >= max(max(lengths), sum(lengths) / count) - 1e-9 for count, end in enumerate(ends, 1))
