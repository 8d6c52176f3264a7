"""How a setting fills its batches, and what it leaves; on Ray, whole settings are tested with the trainer."""

from __future__ import annotations

import copy

import pytest
import torch

from datadream.classify.predictor import Classifier
from datadream.classify.saved import SavedClassifier
from datadream.classify.setting import SettingTrainer, batch_plan
from datadream.ranks import ALONE
from datadream.run_store import RunStore


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
    classifier = Classifier(SavedClassifier.read(store, "real"), "cpu")
    paths = [(name, path) for name in few_shot.class_names for path in (photo_folder / "test" / name).iterdir()]
    named = classifier.predict([path for _, path in paths])
    hits = [next(iter(row)) == name for (name, _), row in zip(paths, named, strict=True)]
    assert 100 * sum(hits) / len(hits) == pytest.approx(outcome.metrics["top1"])
