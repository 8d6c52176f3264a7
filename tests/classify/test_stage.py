"""Classifiers on real Ray: what a run folder holds afterwards, and that it is the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from datadream.classify import stage
from datadream.classify.ingest import feed
from datadream.classify.ingest.batches import LabelledImages, SyntheticImages, shuffled_batches
from datadream.classify.ingest.reader import find_published
from datadream.classify.setting import SettingTrainer
from datadream.classify.stage import ClassifierJob, open_rows, train_classifiers
from datadream.models.clip.load import load_clip
from datadream.models.clip.trainable import load_trainable_state, make_trainable
from datadream.run.layout import FAILED_CLASSIFIERS
from datadream.run.store import RunStore
from datadream.runtime.collectives import ALONE
from datadream.runtime.map_units import quiet_data
from datadream.runtime.workers import Workers
from tests.classify import chaos
from tests.classify.colors import break_image, publish

ALL = ("zero-shot", "real", "synthetic", "real+synthetic")
TRAINED = ALL[1:]
WATCHDOG_SECONDS = 300

pytestmark = pytest.mark.usefixtures("local_ray")


def workers(count: int) -> Workers:
    return Workers(count, threads=1, use_gpu=False)


def with_settings(config, *settings: str):
    return config.updated({"classify.settings": settings})


def train(store: RunStore, few_shot, config, workers: Workers) -> None:
    train_classifiers(store, [ClassifierJob(store, few_shot, config, store)], workers)


def files(store: RunStore, *names: str) -> dict[str, bytes]:
    return {name: store.read_bytes(f"classifier/{name}/lora.safetensors") for name in names}


@pytest.fixture(scope="module")
def run(tmp_path_factory, local_ray, few_shot, config) -> RunStore:
    """A run whose four settings were trained by two workers."""
    store = RunStore(str(tmp_path_factory.mktemp("run")))
    publish(store)
    train(store, few_shot, config, workers(2))
    return store


def test_every_setting_leaves_its_files_and_nothing_else(run):
    root = Path(run.root)
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parts[-2] != "data"}
    always = {
        f"classifier/{setting}/{name}"
        for setting in ALL
        for name in ("head.safetensors", "labels.json", "logits.parquet", "metrics.json")
    }
    lora = {f"classifier/{setting}/lora.safetensors" for setting in TRAINED}
    assert found == always | lora | {"dataset/dataset.json"}


def test_metrics_say_what_was_done(run):
    metrics = {setting: run.read_json(f"classifier/{setting}/metrics.json") for setting in ALL}
    for setting, values in metrics.items():
        assert values["setting"] == setting
        assert (values["n_test"], values["n_val"]) == (30, 18)
        assert [(entry["name"], entry["n"]) for entry in values["per_class"]] == [
            ("blue", 10),
            ("green", 10),
            ("red", 10),
        ]
        assert values["top1"] == pytest.approx(sum(entry["top1"] for entry in values["per_class"]) / 3)
        assert values["macro"] == pytest.approx(values["top1"])
        assert [sum(row) for row in values["confusion"]] == [10, 10, 10]
        assert values["intervals"]["top1"][0] <= values["top1"] <= values["intervals"]["top1"][1]
        assert values["seconds"] > 0
    assert {name: (values["n_real"], values["n_synthetic"]) for name, values in metrics.items()} == {
        "zero-shot": (0, 0),
        "real": (6, 0),
        "synthetic": (0, 60),
        "real+synthetic": (6, 60),
    }
    assert (metrics["zero-shot"]["best_step"], metrics["zero-shot"]["curve"]) == (0, [])
    for setting in TRAINED:
        values = metrics[setting]
        assert [reading["step"] for reading in values["curve"]] == [10, 20, 30]
        assert values["val_top1"] == max(reading["val_top1"] for reading in values["curve"])
        assert values["top1"] > 80 > metrics["zero-shot"]["top1"]


def test_a_classifier_can_be_used_without_us(run, few_shot):
    """The head and the LoRA belong together, and both to the model that labels.json names."""
    labels = json.loads(run.read_bytes("classifier/real/labels.json"))
    head = load(run.read_bytes("classifier/real/head.safetensors"))
    clip = load_clip(labels["model"], labels["pretrained"], "cpu")
    make_trainable(clip.model, **labels["trained"], seed=0)
    load_trainable_state(clip.model, load(run.read_bytes("classifier/real/lora.safetensors")))
    features = clip.encode_text(clip.tokenizer(labels["prompts"]))
    assert labels["classes"] == list(few_shot.class_names)
    torch.testing.assert_close(head["text_features"], features, atol=1e-6, rtol=0)
    torch.testing.assert_close(head["logit_scale"], clip.model.logit_scale.exp())


def test_two_workers_on_ray_learn_what_one_learns_without(run, few_shot, config):
    device = torch.device("cpu")
    alone = SettingTrainer(config, few_shot, device, ALONE)
    pool = published_pool(run, alone.clip.size)
    synthetic = SyntheticImages(len(pool), lambda size, *rest: shuffled_batches(pool, size, ALONE, *rest))
    for setting in TRAINED:
        outcome = alone.run(setting, synthetic, lambda step, reading: None)
        shared = run.read_json(f"classifier/{setting}/metrics.json")
        assert [reading["loss"] for reading in outcome.metrics["curve"]] == pytest.approx(
            [reading["loss"] for reading in shared["curve"]], rel=1e-2, abs=1e-3
        )
        assert outcome.metrics["top1"] == pytest.approx(shared["top1"], abs=5)


def published_pool(run: RunStore, size: int) -> LabelledImages:
    with quiet_data(in_order=True):
        return feed.collect(open_rows(find_published(run, size, order=0)).iterator())


@pytest.mark.soak
@pytest.mark.timeout(WATCHDOG_SECONDS + 60)
def test_a_lost_worker_and_a_lost_node_cost_the_steps_since_a_checkpoint_and_change_nothing(
    run, tmp_path, few_shot, config
):
    """The worker is replaced; without the node, one worker goes on alone."""
    again = RunStore(str(tmp_path))
    publish(again)
    changes = {"cluster.checkpoint_steps": 4, "cluster.workers": 2, "cluster.device": "cpu"}
    chaos.write_run(again, few_shot, config.updated(changes))
    command = [sys.executable, "-m", "tests.classify.chaos", again.root]
    process = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_SECONDS, check=True)
    # Ray may print after it.
    told = json.loads(next(line for line in process.stdout.splitlines() if line.startswith('{"failed"')))
    assert told["failed"] == []
    metrics, undisturbed = (
        {name: store.read_json(f"classifier/{name}/metrics.json") for name in TRAINED} for store in (again, run)
    )
    assert os.path.getmtime(again.path("classifier/zero-shot/metrics.json")) < told["killed_at"]
    resumed = {name: metrics[name]["starts"][1:] for name in TRAINED}
    # Those that lost a worker or a node went on from a checkpoint; a slow machine may have met more than one loss.
    assert resumed["real"]
    assert resumed["real+synthetic"]
    assert all(step % 4 == 0 < step < 30 for steps in resumed.values() for step in steps)
    # Of as many workers as before.
    with_two = ("real", "synthetic")
    assert files(again, *with_two) == files(run, *with_two)
    same = ("top1", "ece", "per_class", "confusion", "val_top1", "best_step")
    losses, found = (
        {name: [reading["loss"] for reading in told[name]["curve"]] for name in TRAINED}
        for told in (undisturbed, metrics)
    )
    for name in with_two:
        assert {key: metrics[name][key] for key in same} == {key: undisturbed[name][key] for key in same}
        assert found[name] == pytest.approx(losses[name], abs=1e-6), "but for the order in which ranks are summed"
    # Of one worker fewer.
    alone = "real+synthetic"
    assert found[alone] == pytest.approx(losses[alone], rel=1e-2, abs=1e-3)
    assert metrics[alone]["top1"] == pytest.approx(undisturbed[alone]["top1"], abs=5)
    assert not list(Path(again.root).rglob("checkpoints"))


def test_what_is_committed_is_not_trained_again(run, few_shot, config, monkeypatch):
    monkeypatch.setattr(stage, "run_together", lambda *_: pytest.fail("nothing was missing"))
    train(run, few_shot, config, workers(2))


@pytest.mark.slow
def test_a_large_set_streams(tmp_path, few_shot, config, monkeypatch):
    """A WebDataset that is too large for memory, so we say, is split among two workers; its shards are ragged."""
    monkeypatch.setattr(feed, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(feed, "SHUFFLE_BYTES", 12 * 3 * 16**2)
    store = RunStore(str(tmp_path))
    publish(store, form="webdataset", shards=3, ragged=True)
    config = config.updated({"classify.batch_size": 7, "classify.mixup": 1.0})
    train(store, few_shot, with_settings(config, "synthetic", "real+synthetic"), workers(2))
    for setting in ("synthetic", "real+synthetic"):
        assert store.read_json(f"classifier/{setting}/metrics.json")["top1"] > 80


@pytest.mark.soak
def test_a_setting_that_diverges_is_named_the_others_are_trained_and_the_next_call_redoes_it_alone(
    tmp_path, few_shot, config
):
    """One of three runs has a learning rate that breaks it."""
    config = with_settings(config, "real")
    broken = config.updated({"classify.learning_rate": 1e30})
    stores = [RunStore(str(tmp_path / name)) for name in ("a", "b", "c")]
    configs = [config, broken, config]
    jobs = [ClassifierJob(store, few_shot, own, store) for store, own in zip(stores, configs, strict=True)]
    with pytest.raises(RuntimeError, match=r"training 1 of 3 classifiers failed:\n  b/real: the classifier's loss"):
        train_classifiers(stores[0], jobs, workers(1))
    assert [store.exists("classifier/real/metrics.json") for store in stores] == [True, False, True]
    assert len(stores[0].read_json(FAILED_CLASSIFIERS)) == 1
    before = [os.stat(store.path("classifier/real/metrics.json")).st_mtime_ns for store in (stores[0], stores[2])]
    jobs[1] = replace(jobs[1], config=config)
    train_classifiers(stores[0], jobs, workers(1))
    assert files(stores[1], "real") == files(stores[0], "real")
    assert [
        os.stat(store.path("classifier/real/metrics.json")).st_mtime_ns for store in (stores[0], stores[2])
    ] == before
    assert not stores[0].exists(FAILED_CLASSIFIERS)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [feed.MEMORY_LIMIT, 0])
def test_an_image_that_cannot_be_decoded_is_named_and_costs_what_needs_it(
    tmp_path, few_shot, config, monkeypatch, limit
):
    """Decoded before the workers start, or while they read the stream."""
    monkeypatch.setattr(feed, "MEMORY_LIMIT", limit)
    store = RunStore(str(tmp_path))
    publish(store)
    name = break_image(store)
    with pytest.raises(RuntimeError) as caught:
        train(store, few_shot, with_settings(config, "synthetic", "real"), workers(1))
    said = f"image '{name}' of the dataset cannot be decoded"
    assert str(caught.value).startswith(f"training 1 of 2 classifiers failed:\n  synthetic: {said}")
    assert "\n" not in str(caught.value).partition(said)[2]
    assert store.exists("classifier/real/metrics.json")
    assert not store.exists("classifier/synthetic")


def test_without_a_dataset_synthetic_settings_are_refused(tmp_path, few_shot, config):
    with pytest.raises(ValueError, match=r"dataset/dataset.json is missing. Run generate first"):
        train(RunStore(str(tmp_path)), few_shot, config, workers(1))


def test_without_test_photos_none_can_choose(tmp_path, few_shot, config):
    with pytest.raises(ValueError, match=r"select_on is 'test', but there are no test photos"):
        train(
            RunStore(str(tmp_path)),
            replace(few_shot, test=()),
            config.updated({"classify.select_on": "test"}),
            workers(1),
        )


def test_a_batch_of_one_cannot_hold_both_origins(tmp_path, few_shot, config):
    with pytest.raises(ValueError, match=r"batch_size is 1"):
        train(RunStore(str(tmp_path)), few_shot, config.updated({"classify.batch_size": 1}), workers(1))
