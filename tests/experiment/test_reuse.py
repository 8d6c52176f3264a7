"""Other classifiers on the images of a finished run: refused up front where they do not fit, and nothing generated."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from datadream import recipes
from datadream.cli import main
from datadream.config import ExperimentConfig
from datadream.data.shards import ImageRecord, encode_image, to_parquet
from datadream.experiment.experiment import Experiment
from datadream.report.pictures import class_pictures
from datadream.run.cell import Cell
from datadream.run.config_record import record_config
from datadream.run.layout import (
    CONFIG,
    DATASET,
    FEW_SHOT,
    GENERATE_PLAN,
    ClassifierMarker,
    DatasetMarker,
    classifier_marker,
    shard_file,
)
from datadream.run.plan_record import record_plan
from datadream.run.store import RunStore
from tests.tiny_clip import save_tiny_clip


def finished_run(folder: Path, config: ExperimentConfig, plan: str = "a" * 64) -> RunStore:
    """What generation leaves: two images of each digit, published in one shard."""
    store = RunStore(str(folder))
    cell = Cell(config, store)
    record_config(store, config)
    store.write_json(FEW_SHOT, cell.few_shot.to_json())
    rng, names = np.random.default_rng(0), cell.few_shot.class_names
    records = [
        ImageRecord(
            f"{i % 10:05d}_{i // 10:06d}",
            encode_image(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "webp"),
            i % 10,
            {},
        )
        for i in range(20)
    ]
    data, shard = to_parquet(records, "webp", names), "data/train-00000-of-00001.parquet"
    store.write_bytes(shard_file(shard), data)
    marker = DatasetMarker(
        plan=plan,
        format="parquet",
        image_format="webp",
        n_images=20,
        class_names=names,
        shards=[shard],
        n_bytes=[len(data)],
    )
    store.write_json(DATASET, marker.to_json())
    return store


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def config() -> ExperimentConfig:
    return recipes.digits(seed=3, **{"data.n_shots": 2, "generate.images_per_class": 2, "cluster.workers": 2})


@pytest.fixture
def source(tmp_path, config) -> RunStore:
    return finished_run(tmp_path / "a", config)


def refused(words: list[str], run: Path, capsys) -> str:
    assert main(["run", str(run), *words]) == 2
    assert not run.exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_contradicts_the_run_is_named(source, tmp_path, capsys):
    run, given = tmp_path / "b", ["--from", str(tmp_path / "a")]
    message = refused([*given, "data.n_shots=4", "generate.steps=50", "classify.steps=7"], run, capsys)
    assert "were made with another config: data.n_shots (2 there, 4 now); generate.steps (12 there, 50 now)" in message
    assert "method (datadream-cls there, is-synth now)" in refused([*given, "method=is-synth"], run, capsys)
    assert "--recipe digits beside --from" in refused([*given, "--recipe", "digits"], run, capsys)
    assert "make no table" in refused([*given, "grid.seeds=[0,1]"], run, capsys)


def test_a_run_that_is_none_or_is_not_finished_is_refused(source, config, tmp_path, capsys):
    run = tmp_path / "b"
    assert f"no run at '{tmp_path / 'c'}'" in refused(["--from", str(tmp_path / "c")], run, capsys)
    source.remove(DATASET)
    message = refused(["--from", str(tmp_path / "a")], run, capsys)
    assert "has no synthetic images to train on: dataset/dataset.json is missing" in message
    record_config(RunStore(str(tmp_path / "table")), config.updated({"grid.seeds": [0, 1]}))
    message = refused(["--from", str(tmp_path / "table")], run, capsys)
    assert "is a table of runs: give one of the folders in its cells/" in message


def test_it_has_the_shots_of_the_other_and_plans_nothing(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = recipes.digits(seed=3, images_from="a", **{"data.n_shots": 2, "generate.images_per_class": 2})
    experiment = Experiment(given, "b")
    assert experiment.config.images_from == str(tmp_path / "a")
    experiment.check_inputs()
    (cell,) = experiment.cells
    assert cell.few_shot == Cell(given, source).few_shot
    assert (cell.plan.adapters, cell.chunks, cell.plan_hash) == ((), [], "a" * 64)
    assert [(row.stage, row.total) for row in experiment.status() if row.total] == [("classify", 4)]
    for stage in (experiment.adapt, experiment.generate):
        with pytest.raises(ValueError, match="it adapts and generates nothing. Use classify."):
            stage()


def test_images_that_were_generated_anew_meanwhile_are_noticed(source, config, tmp_path):
    reusing = config.updated({"images_from": source.url})
    run = RunStore(str(tmp_path / "b"))
    record_plan(run, Cell(reusing, run).plan_hash)
    Experiment(reusing, run.url).check_inputs()
    finished_run(tmp_path / "a", config, plan="b" * 64)
    with pytest.raises(ValueError, match="holds other images than when run .* began to train on them"):
        Experiment(reusing, run.url).check_inputs()


def test_the_page_shows_the_other_runs_images_and_outlives_them(source, config, tmp_path):
    reusing = config.updated({"images_from": source.url, "classify.settings": ["synthetic"]})
    run = RunStore(str(tmp_path / "b"))
    record_config(run, reusing)
    run.write_json(FEW_SHOT, Cell(reusing, run).few_shot.to_json())
    run.write_json(classifier_marker("synthetic"), ClassifierMarker(setting="synthetic", top1=81.0).to_json())
    pictures, _ = class_pictures([(run, reusing)])
    assert [len(each.generated["datadream-cls"]) for each in pictures] == [2] * 10
    (record,) = Experiment(reusing, run.url).report()
    assert (record["method"], record["top1"], record["seed"]) == ("datadream-cls", 81.0, 3)
    shutil.rmtree(tmp_path / "a")
    assert main(["run", run.url]) == 0


@pytest.mark.soak
def test_other_classifiers_are_trained_copying_and_generating_nothing(local_ray, source, clip, tmp_path, capsys):
    run = tmp_path / "b"
    knobs = [f"classify.model=local-dir:{clip}", "classify.steps=4", "classify.eval_every=4"]
    command = ["run", str(run), "--from", str(tmp_path / "a"), *knobs, "classify.settings=[zero-shot,synthetic]"]
    before = source.files("")
    assert main(command) == 0
    assert source.files("") == before
    assert {path.name for path in run.iterdir()} >= {"config.json", "few_shot.json", "classifier", "metrics.json"}
    assert not [name for name in ("adapters", "chunks", "dataset") if (run / name).exists()]
    store = RunStore(str(run))
    assert store.read_json(CONFIG)["config"]["images_from"] == source.url
    assert store.read_json(GENERATE_PLAN)["plan"] == "a" * 64
    trained = store.read_json(classifier_marker("synthetic"))
    assert trained["n_synthetic"] == 20
    # One is lost: the short command goes on, and trains that one alone.
    kept = (run / classifier_marker("zero-shot")).stat().st_mtime_ns
    weights = (run / "classifier" / "synthetic" / "lora.safetensors").read_bytes()
    shutil.rmtree(run / "classifier" / "synthetic")
    assert main(["run", str(run)]) == 0
    assert (run / "classifier" / "synthetic" / "lora.safetensors").read_bytes() == weights
    assert (run / classifier_marker("zero-shot")).stat().st_mtime_ns == kept
    # And its images are again the other's for who asks for this one.
    assert main(["status", str(run)]) == 0
    assert "classify  2/2 classifiers" in capsys.readouterr().out
