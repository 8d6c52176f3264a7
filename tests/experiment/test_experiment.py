"""The whole pipeline on real Ray: every stage once, again for nothing, over kills and damage, and as a table."""

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from datadream import recipes
from datadream.adapt.stage import adapter_units
from datadream.config import ExperimentConfig
from datadream.experiment.driver import driving
from datadream.experiment.experiment import Experiment
from datadream.generate.stage import generate_chunks
from datadream.run.layout import DATASET, LOCK, SELECTION, adapter_weights
from tests.processes import wait_until_gone
from tests.tiny_clip import save_tiny_clip

SECRETS = {"AWS_SECRET_ACCESS_KEY": "a-secret-of-storage", "HF_TOKEN": "hf_a_secret_of_the_hub"}


@pytest.fixture(scope="module")
def config(pipeline_folder, tmp_path_factory) -> ExperimentConfig:
    """All of it, small: random models, few steps."""
    clip = tmp_path_factory.mktemp("clip")
    save_tiny_clip(clip)
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 4,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 2,
        "generate.images_per_class": 6,
        "generate.chunk_size": 3,
        "generate.steps": 2,
        "generate.images_per_shard": 25,
        "classify.model": f"local-dir:{clip}",
        "classify.steps": 4,
        "classify.eval_every": 4,
        "classify.settings": ["zero-shot", "real+synthetic"],
        "cluster.workers": 2,
    }
    return recipes.digits(**changes)


@pytest.fixture(scope="module")
def undisturbed(local_ray, config, tmp_path_factory) -> Experiment:
    experiment = Experiment(config, str(tmp_path_factory.mktemp("run")))
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        experiment.run()
    return experiment


def files(run: Path | str, folder: str) -> dict[str, bytes]:
    root = Path(run) / folder
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def weights(run: Path | str) -> dict[str, bytes]:
    return {name: data for name, data in files(run, "adapters").items() if name.endswith(".safetensors")}


def test_a_run_leaves_what_the_contract_names(undisturbed):
    root = Path(undisturbed.store.root)
    for name in ("config.json", "few_shot.json", "metrics.json", "report/index.html", "dataset/README.md"):
        assert (root / name).is_file(), name
    records = undisturbed.store.read_json("metrics.json")
    assert [(r["method"], r["setting"], r["shots"], r["seed"]) for r in records] == [
        ("none", "zero-shot", 2, 0),
        ("datadream-cls", "real+synthetic", 2, 0),
    ]
    assert all(0 <= r["top1"] <= 100 and r["n_test"] == 1007 for r in records)
    assert undisturbed.is_finished()
    assert not [path for path in root.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".")]


def test_no_file_of_a_run_holds_a_secret_of_the_environment(undisturbed):
    for name, data in files(undisturbed.store.root, ".").items():
        # Parquet's columns may be compressed.
        text = str(pq.read_table(io.BytesIO(data)).to_pydict()).encode() if name.endswith(".parquet") else b""
        assert not [secret for secret in SECRETS.values() if secret.encode() in data + text], name


def test_a_second_call_does_nothing_again(undisturbed):
    root = Path(undisturbed.store.root)
    times = {
        path: path.stat().st_mtime_ns
        for part in ("adapters", "chunks", "dataset", "classifier")
        for path in (root / part).rglob("*")
    }
    Experiment(undisturbed.config, str(root)).run()
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.soak
def test_a_finished_run_of_which_an_adapter_was_damaged_trains_it_again_and_nothing_else(undisturbed, tmp_path):
    """Markers alone would take it for finished, and whoever generates next would meet what is not there."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed.store.root, run)
    damaged = run / adapter_weights("class-00003")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    times = _times(run, "adapters/*/adapter.json") | _times(run, "chunks/*") | _times(run, "classifier/*/metrics.json")
    experiment = Experiment(undisturbed.config, str(run))
    assert not experiment.is_finished()
    experiment.run()
    assert experiment.is_finished()
    assert weights(run) == weights(undisturbed.store.root) | {f"class-00003/{_set_aside(damaged)}": _cut(damaged)}
    changed = [path for path, when in times.items() if path.stat().st_mtime_ns != when]
    assert changed == [damaged.parent / "adapter.json"]


def _set_aside(weights: Path) -> str:
    (found,) = weights.parent.glob("corrupt-*")
    return found.name


def _cut(weights: Path) -> bytes:
    return weights.read_bytes()[:-1]


@pytest.mark.soak
def test_spare_workers_generate_classes_whose_adapters_are_there(undisturbed, config, tmp_path):
    """The session holds three workers, one is asked for, and one adapter is missing."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed.store.path("adapters"), run / "adapters")
    (run / "adapters" / "class-00000" / "adapter.json").unlink()
    experiment = Experiment(config.updated({"cluster.workers": 1}), str(run))
    adapters = adapter_units(experiment.store.url, experiment.cells[0].plan.adapters, config.adapt)
    with driving(experiment.config, experiment.store, experiment.cells, adapters) as driver:
        assert driver.spare_workers().count == 2
        chunks = driver.ready_chunks()[:4]
        generate_chunks(experiment.store, chunks, experiment.config, driver.spare_workers(), ())
        assert len(driver.ready_chunks()) == 14
    # Two chunks of each class; the class that waits is passed over.
    theirs = {path.name: path.read_bytes() for path in Path(undisturbed.store.path("chunks")).glob("0000[12]-*")}
    assert {path.name: path.read_bytes() for path in (run / "chunks").iterdir()} == theirs


def _times(run: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.glob(pattern)}


SECONDS_TO_START = 200.0


@contextmanager
def _started(stage: str, config: ExperimentConfig, run: Path, **options: object) -> Iterator[psutil.Popen]:
    """The command as a user starts it, with Ray's own processes; killed with all of them at the end of the block."""
    file = run.parent / "config.yaml"
    file.write_text(config.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "datadream.cli", stage, "--config", str(file), "--run", str(run)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # A suite that nohup or a background job started hands on that signals are ignored, which a command respects.
    options.setdefault("preexec_fn", _heed_signals)
    process = psutil.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        _kill(process)


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _kill(driver: psutil.Popen) -> None:
    """kill -9 of the driver; its workers, which Ray ends when they miss it, may still commit until they are gone."""
    if driver.poll() is not None:
        return
    workers = driver.children(recursive=True)
    driver.kill()
    driver.wait()
    wait_until_gone(workers, SECONDS_TO_START)


def _wait_for(reached, driver: psutil.Popen) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not reached():
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.soak
def test_adapters_whose_training_was_killed_are_finished_by_one_worker_as_if_it_was_not(local_ray, config, tmp_path):
    longer = config.updated({"adapt.steps_per_class": 60})
    quiet, run = Experiment(longer, str(tmp_path / "quiet")), tmp_path / "run"
    quiet.adapt()
    with _started("run", longer, run) as driver:
        _wait_for(lambda: len(list(run.glob("adapters/*/adapter.json"))) >= 2, driver)
    adapters = _times(run, "adapters/*/adapter.json")
    assert 0 < len(adapters) < 10
    (run / "adapters" / ".half.json.0.tmp").write_bytes(b"what a killed writer leaves")
    Experiment(longer.updated({"cluster.workers": 1}), str(run)).adapt()
    assert all(path.stat().st_mtime_ns == when for path, when in adapters.items())
    assert (run / "few_shot.json").read_bytes() == quiet.store.read_bytes("few_shot.json")
    assert weights(run) == weights(quiet.store.root)
    assert not list(run.rglob(".*"))


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_scheduler_that_ends_a_run_is_told_how_it_goes_on(config, tmp_path, number):
    """Slurm and Kubernetes send SIGTERM, which Ray would answer with a native stack."""
    run = tmp_path / "run"
    with _started("adapt", config.updated({"adapt.steps_per_class": 2000}), run) as driver:
        _wait_for(lambda: (run / "stages" / "adapt-running.json").exists(), driver)
        driver.send_signal(number)
        sent = time.monotonic()
        said = driver.communicate(timeout=SECONDS_TO_START)[1]
        print(f"{number!r}: ended after {time.monotonic() - sent:.1f} s")
    assert driver.returncode == 130
    expected = f"datadream: interrupted. The same command goes on from here: {shlex.join(driver.args)}"
    assert said.splitlines()[-1] == expected
    assert "***" not in said
    assert not (run / LOCK).exists()


@pytest.mark.soak
def test_of_two_drivers_on_one_folder_the_second_is_refused_and_succeeds_the_first_when_that_is_killed(
    config, tmp_path
):
    run = tmp_path / "run"
    with _started("adapt", config.updated({"adapt.steps_per_class": 2000}), run) as first:
        _wait_for(lambda: (run / "stages" / "adapt-running.json").exists(), first)
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name in ("config.json", LOCK)}
        with _started("adapt", first_config := config.updated({"adapt.steps_per_class": 2000}), run) as second:
            said = second.communicate(timeout=SECONDS_TO_START)[1]
        assert second.returncode == 2
        (line,) = [line for line in said.splitlines() if line.startswith("datadream:")]
        for part in (f"(process {first.pid} on {os.uname().nodename}, since", f"remove {run / LOCK}"):
            assert part in line
        assert first.poll() is None
        assert (run / "config.json").stat().st_mtime_ns == before[run / "config.json"]
    assert (run / LOCK).exists()
    with _started("adapt", first_config, run) as third:
        _wait_for(lambda: f'"pid": {third.pid}' in (run / LOCK).read_text(), third)
        _wait_for(lambda: (run / "stages" / "adapt-running.json").exists(), third)


@pytest.mark.soak
def test_a_table_of_a_folder_without_a_test_part_shares_its_baselines(local_ray, config, photo_folder, tmp_path):
    source = {"data.source": str(photo_folder), "data.n_shots": 6}
    settings = {"classify.settings": ["zero-shot", "synthetic"], "generate.images_per_class": 3}
    settings |= {"generate.select.coverage": 1.5}
    grid = {"grid.methods": ["zero-shot", "is-synth"], "grid.seeds": [3], "grid.images_per_class": [2, 3]}
    experiment = Experiment(config.updated(source | settings | grid), str(tmp_path / "run"))
    names = [cell.store.root.rsplit("/", 1)[1] for cell in experiment.cells]
    assert names == [
        "none-k6-seed3",
        "zero-shot-k6-seed3",
        "zero-shot-k6-seed3-images2",
        "is-synth-k6-seed3",
        "is-synth-k6-seed3-images2",
    ]
    records = experiment.run()
    assert [(r["setting"], r["method"], r["n_synthetic"], r["seed"], r["top1"]) for r in records] == [
        ("zero-shot", "none", 0, 3, None),
        ("synthetic", "zero-shot", 6, 3, None),
        ("synthetic", "zero-shot", 9, 3, None),
        ("synthetic", "is-synth", 6, 3, None),
        ("synthetic", "is-synth", 9, 3, None),
    ]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert len(page) > 10_000
    assert "is-synth" in page
    weights = [cell.store.read_bytes("classifier/synthetic/lora.safetensors") for cell in experiment.cells[1:]]
    assert len(set(weights)) == 4
    # The images of a curve are generated once.
    generating = [cell for cell in experiment.cells if cell.store.exists("dataset") or cell.store.exists("chunks")]
    assert generating == [experiment.cells[1], experiment.cells[3]]
    assert experiment.is_finished()
    selected = [entry for cell in generating for entry in cell.store.read_json(SELECTION)["classes"]]
    assert [(entry["candidates"], entry["n_images"], entry["rejected"]["redundant"]) for entry in selected] == [
        (5, 3, 2)
    ] * 6
    assert max(index for entry in selected for index in entry["images"]) > 2
    assert [cell.store.read_json(DATASET)["n_images"] for cell in generating] == [9, 9]


def test_a_search_without_photos_to_choose_on_is_refused(config, photo_folder, tmp_path):
    changes = {"data.source": str(photo_folder), "data.n_shots": 6, "classify.folds": 0, "classify.settings": ["real"]}
    search = {"classify.search.learning_rates": [1e-3, 1e-4]}
    with pytest.raises(ValueError, match="classify.search chooses knobs on validation photos, but real has none"):
        Experiment(config.updated(changes | search | {"method": "none"}), str(tmp_path / "run")).check()


def test_generate_without_adapters_says_so(local_ray, config, tmp_path):
    with pytest.raises(ValueError, match=r"10 adapters are not trained yet, such as 'class-00000'. Run adapt first"):
        Experiment(config, str(tmp_path)).generate()


def test_filters_that_ask_for_more_classes_than_there_are_are_refused(config, tmp_path):
    experiment = Experiment(config.updated({"generate.select.label_top_k": 11}), str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"generate.select.label_top_k is 11, but 'digits' has 10 classes"):
        experiment.generate()
    assert not (tmp_path / "run").exists()


def test_a_strength_that_leaves_no_step_is_refused(config, tmp_path):
    short = config.updated({"method": "is-synth", "generate.steps": 1, "generate.strength": 0.75})
    with pytest.raises(
        ValueError, match=r"generate.strength 0.75 leaves none of generate.steps 1 to restore a photo in"
    ):
        Experiment(short, str(tmp_path / "run")).generate()
    assert not (tmp_path / "run").exists()


def test_templates_under_which_names_are_cut_are_refused(config, tmp_path):
    templates = ["a photo of a {name}", "a very " + "long " * 30 + "{name}"]
    with pytest.raises(ValueError, match=r"generate.prompts has 'a very long .*: with class 'digit zero' it has"):
        Experiment(config.updated({"generate.prompts": templates}), str(tmp_path / "run")).check()


def test_another_config_in_the_same_folder_is_refused(undisturbed):
    other = Experiment(undisturbed.config.updated({"adapt.rank": 8}), undisturbed.store.root)
    with pytest.raises(ValueError, match=r"made with another config: adapt.rank \(16 there, 8 now\)"):
        other.run()
