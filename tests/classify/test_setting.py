"""How a setting fills its batches and is chosen, on one device; what Ray adds is tested with the trainer."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datadream.classify.files import SavedClassifier
from datadream.classify.loop import Checkpoints
from datadream.classify.predictor import Classifier
from datadream.classify.setting import SettingTrainer, batch_plan
from datadream.data.datasets import open_source
from datadream.run.store import RunStore
from datadream.runtime.collectives import ALONE

CPU = torch.device("cpu")


def run(trainer, setting="real", checkpoints_of=None):
    heard = []
    outcome = trainer.run(setting, None, lambda step, reading: heard.append(step), checkpoints_of)
    return outcome, heard


@pytest.mark.parametrize(
    ("setting", "plan"),
    [
        ("zero-shot", []),
        ("real", [("real", 9, 1.0)]),
        ("synthetic", [("synthetic", 9, 1.0)]),
        ("real+synthetic", [("real", 5, 0.75), ("synthetic", 4, 0.25)]),
    ],
)
def test_batches_are_filled_as_the_setting_says(setting, plan):
    assert batch_plan(setting, 9, 0.75) == plan


def test_logits_tell_the_metrics_again(config, few_shot):
    outcome, _ = run(SettingTrainer(config, few_shot, CPU, ALONE))
    table = pq.read_table(io.BytesIO(outcome.files["logits.parquet"]))
    hits = np.stack(table["logits"].to_numpy()).argmax(axis=1) == table["label"].to_numpy()
    assert table["key"].to_pylist() == [photo.key for photo in few_shot.test]
    assert outcome.metrics["top1"] == pytest.approx(100 * hits.mean())
    assert outcome.metrics["chosen_by"] == "val"


def test_folds_choose_the_steps_and_all_shots_are_trained_on(config, few_shot):
    knobs = {"classify.steps": 20, "classify.eval_every": 5}
    without_val = replace(few_shot, val=())
    trainer = SettingTrainer(config.updated(knobs), without_val, CPU, ALONE)
    outcome, heard = run(trainer)
    metrics = outcome.metrics
    assert (metrics["chosen_by"], metrics["n_val"], metrics["n_real"]) == ("folds", 6, 6)
    assert [reading["step"] for reading in metrics["curve"]] == [5, 10, 15, 20]
    assert metrics["val_top1"] == max(reading["val_top1"] for reading in metrics["curve"])
    best = metrics["best_step"]
    assert metrics["curve"][best // 5 - 1]["val_top1"] == metrics["val_top1"]
    assert heard == list(range(1, 41 + best))
    # The weights are those of a training on all shots that stopped there.
    last = run(trainer.with_knobs({"folds": 0}))[0]
    assert (last.metrics["chosen_by"], last.metrics["val_top1"]) == (None, None)
    assert (last.files["lora.safetensors"] == outcome.files["lora.safetensors"]) == (best == 20)


def test_readings_of_folds_cost_no_training_on_all_shots(config, few_shot):
    knobs = {"classify.steps": 10, "classify.eval_every": 5}
    for val, chosen_by, trainings in ((few_shot.val, "val", 1), ((), "folds", 2)):
        trainer, heard = SettingTrainer(config.updated(knobs), replace(few_shot, val=val), CPU, ALONE), []
        untouched = copy.deepcopy(trainer.clip.model.state_dict())
        chosen = trainer.choose("real", None, lambda step, reading, heard=heard: heard.append(step))
        assert heard == list(range(1, 10 * trainings + 1))
        assert chosen["chosen_by"] == chosen_by
        assert all(torch.equal(tensor, untouched[name]) for name, tensor in trainer.clip.model.state_dict().items())
        metrics = run(trainer)[0].metrics
        same = ("val_top1", "chosen_by", "best_step", "curve")
        assert {name: chosen[name] for name in same} == {name: metrics[name] for name in same}


def test_epochs_are_read_one_by_one_and_a_trial_takes_a_part_of_them(config, few_shot):
    """3 epochs of 8 images of each class, in batches of 12."""
    of_epoch = -(-8 * len(few_shot.class_names) // 12)
    knobs = {"classify.epochs": 3, "classify.eval_every": None, "generate.images_per_class": 8}
    trainer = SettingTrainer(config.updated(knobs), few_shot, CPU, ALONE)
    outcome, heard = run(trainer)
    assert heard == list(range(1, 3 * of_epoch + 1))
    assert [reading["step"] for reading in outcome.metrics["curve"]] == [of_epoch, 2 * of_epoch, 3 * of_epoch]
    trial = trainer.with_knobs({"steps": 1, "warmup_steps": 0, "eval_every": 1})
    assert run(trial)[1] == [1]


def test_folds_that_are_done_are_not_trained_again(config, few_shot):
    knobs = {"classify.steps": 10, "classify.eval_every": 5}
    saved: dict[str, bytes] = {}

    def checkpoints_of(name: str) -> Checkpoints:
        return Checkpoints(lambda: saved.get(name), lambda data: saved.update({name: data}), every=4)

    trainer = SettingTrainer(config.updated(knobs), replace(few_shot, val=()), CPU, ALONE)
    whole, _ = run(trainer, checkpoints_of=checkpoints_of)
    assert set(saved) == {"fold-0", "fold-1", "all"}
    del saved["all"], saved["fold-1"]
    again, heard = run(trainer, checkpoints_of=checkpoints_of)
    assert heard == list(range(11, 21 + whole.metrics["best_step"]))
    assert again.files["lora.safetensors"] == whole.files["lora.safetensors"]


def test_one_loaded_clip_serves_several_knobs(config, few_shot):
    trainer = SettingTrainer(config, few_shot, CPU, ALONE)
    slow = trainer.with_knobs({"learning_rate": 1e-5, "weight_decay": 0.0, "mixup": 1.0})
    first, other, again = (run(each)[0].metrics for each in (trainer, slow, trainer))
    assert slow.clip is trainer.clip
    assert other["curve"][-1]["loss"] > first["curve"][-1]["loss"] == again["curve"][-1]["loss"]
    with pytest.raises(ValueError, match=r"classify.model cannot be changed on a CLIP that is loaded"):
        trainer.with_knobs({"model": "RN50"})


def test_a_search_may_mirror_images(config, few_shot):
    trainer = SettingTrainer(config, few_shot, torch.device("cpu"), ALONE)
    short = {"steps": 4, "eval_every": 4}
    unset, no, yes = (
        trainer.with_knobs(short | knobs).choose("real", None, lambda step, reading: None)["curve"]
        for knobs in ({}, {"augment.flip": False}, {"augment.flip": True})
    )
    assert unset == no != yes


def test_what_test_photos_chose_is_marked(config, few_shot):
    outcome, _ = run(SettingTrainer(config.updated({"classify.select_on": "test"}), few_shot, CPU, ALONE))
    metrics = outcome.metrics
    assert (metrics["chosen_by"], metrics["val_top1"], metrics["n_val"]) == ("test", None, 0)
    assert metrics["top1"] == max(reading["val_top1"] for reading in metrics["curve"])


def test_a_fully_trained_image_tower_is_saved_and_forgotten(config, few_shot, photo_folder, tmp_path):
    full = config.updated({"classify.image_tower": "full", "classify.learning_rate": 1e-3})
    trainer = SettingTrainer(full, few_shot, torch.device("cpu"), ALONE)
    untouched = copy.deepcopy(trainer.clip.model.state_dict())
    outcome = trainer.run("real", None, lambda step, reading: None)
    assert outcome.metrics["top1"] > 80
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in trainer.clip.model.state_dict().items())
    store = RunStore(str(tmp_path))
    for name, data in outcome.files.items():
        store.write_bytes(f"classifier/real/{name}", data)
    classifier = Classifier([SavedClassifier.read(store, "real")], "cpu")
    paths = [(name, path) for name in few_shot.class_names for path in (photo_folder / "test" / name).iterdir()]
    named = classifier.predict([path for _, path in paths])
    hits = [next(iter(row)) == name for (name, _), row in zip(paths, named, strict=True)]
    assert 100 * sum(hits) / len(hits) == pytest.approx(outcome.metrics["top1"])


def test_learned_words_are_trained_saved_and_predict(config, few_shot, photo_folder, tmp_path):
    learned = config.updated({"classify.context": 4, "classify.lora_dropout": 0.1, "classify.steps": 60})
    trainer = SettingTrainer(learned, few_shot, CPU, ALONE)
    other = SettingTrainer(config, few_shot, CPU, ALONE)
    assert run(trainer, "zero-shot")[0].metrics["top1"] == run(other, "zero-shot")[0].metrics["top1"]
    outcome, _ = run(trainer)
    first, *_, last = outcome.metrics["curve"]
    assert last["loss"] < first["loss"]
    assert sorted(outcome.files) == ["context.safetensors", "head.safetensors", "labels.json", "logits.parquet"]
    store = RunStore(str(tmp_path))
    for name, data in outcome.files.items():
        store.write_bytes(f"classifier/real/{name}", data)
    classifier = Classifier([SavedClassifier.read(store, "real")], "cpu")
    expected = torch.tensor(pq.read_table(io.BytesIO(outcome.files["logits.parquet"]))["logits"].to_pylist())
    source = open_source(str(photo_folder))
    for named, row in zip(
        classifier.predict([source.read(photo.key) for photo in few_shot.test]), expected.softmax(dim=1), strict=True
    ):
        assert named == pytest.approx(dict(zip(few_shot.class_names, row.tolist(), strict=True)), abs=1e-5)
    with pytest.raises(ValueError, match="a classifier of learned words is no CLIP checkpoint"):
        classifier.save_checkpoint(tmp_path / "clip")
