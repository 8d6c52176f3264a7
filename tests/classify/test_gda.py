"""Gaussian discriminant analysis equals scikit-learn's, adds up over workers, and learns colours without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from datadream.classify.gda import WEIGHTS, LinearHead, Moments, choose, count_hits, fit
from datadream.classify.ingest.batches import LabelledImages, SyntheticImages, shuffled_batches
from datadream.classify.setting import SettingTrainer
from datadream.data.augment import Augment
from datadream.models.clip.load import load_clip
from datadream.runtime.collectives import ALONE
from tests.classify.colors import COLORS, color_image

N_CLASSES, SIZE = 4, 6


@pytest.fixture
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated Gaussian features of four classes, 50 of each."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(N_CLASSES), 50)
    features = rng.normal(size=(N_CLASSES, SIZE))[labels] + rng.normal(size=(200, SIZE)) @ rng.normal(
        size=(SIZE, SIZE)
    )
    return torch.from_numpy(features), torch.from_numpy(labels)


def scikit_learn(features, labels, shrinkage):
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[1 / N_CLASSES] * N_CLASSES)
    return lda.fit(features.numpy(), labels.numpy())


def logits(head: LinearHead, features: torch.Tensor) -> torch.Tensor:
    """Without the constant and the scale that no decision depends on."""
    centred = head(features.float()) - head(features.float()).mean(dim=1, keepdim=True)
    return centred / centred.norm()


def test_it_is_linear_discriminant_analysis_with_a_shrunk_covariance(sample):
    features, labels = sample
    lda = scikit_learn(features, labels, shrinkage=SIZE / (200 - 1 + SIZE))
    theirs = LinearHead(torch.from_numpy(lda.coef_).float(), torch.from_numpy(lda.intercept_).float())
    ours = fit(Moments.of(features, labels, 0.7, N_CLASSES))
    torch.testing.assert_close(logits(ours, features), logits(theirs, features), atol=1e-5, rtol=1e-4)


def test_with_many_images_nothing_is_shrunk(sample):
    features, labels = sample
    many = Moments.of(features.repeat(500, 1), labels.repeat(500), 1.0, N_CLASSES)
    predicted = fit(many)(features.float()).argmax(dim=1)
    assert predicted.tolist() == scikit_learn(features, labels, shrinkage=None).predict(features.numpy()).tolist()


def test_moments_add_up_over_origins_and_workers(sample):
    features, labels = sample
    whole = fit(Moments.of(features, labels, 0.1, N_CLASSES))
    parts = fit(
        Moments.of(features[:70], labels[:70], 0.1, N_CLASSES) + Moments.of(features[70:], labels[70:], 0.1, 4)
    )
    torch.testing.assert_close(parts.weight, whole.weight)
    torch.testing.assert_close(parts.bias, whole.bias)


def test_one_image_of_each_class_is_a_nearest_mean_and_none_is_refused():
    features = torch.nn.functional.normalize(torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0)), dim=1)
    assert fit(Moments.of(features, torch.arange(3), 1.0, 3))(features).argmax(dim=1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="class 3 has no image"):
        fit(Moments.of(features, torch.arange(3), 1.0, 4))


def test_validation_photos_choose_the_smallest_weight_that_is_best():
    features, labels = torch.eye(2), torch.tensor([0, 1])
    wrong, right = LinearHead(-torch.eye(2), torch.zeros(2)), LinearHead(torch.eye(2), torch.zeros(2))
    chosen = choose(wrong, right, count_hits(wrong, right, features, labels))
    assert (chosen.weight, chosen.val_top1) == (10.0, 100.0)
    assert chosen.head(features).argmax(dim=1).tolist() == [0, 1]
    assert choose(right, right, count_hits(right, right, features, labels)).weight == WEIGHTS[0]
    blind = choose(right, right, count_hits(right, right, features[:0], labels[:0]))
    assert (blind.weight, blind.val_top1) == (1.0, None)


def test_it_learns_colours_without_training(config, few_shot):
    rng = np.random.default_rng(5)
    images = [np.asarray(color_image(rng, name, (16, 16))).transpose(2, 0, 1) for name in COLORS for _ in range(20)]
    pool = LabelledImages(torch.from_numpy(np.stack(images)), torch.arange(3).repeat_interleave(20))
    synthetic = SyntheticImages(60, lambda size, *rest: shuffled_batches(pool, size, ALONE, *rest))
    trainer = SettingTrainer(config, few_shot, torch.device("cpu"), ALONE)
    before = {name: tensor.clone() for name, tensor in trainer.clip.model.state_dict().items()}
    outcomes = {
        name: trainer.run(name, synthetic, lambda step, reading: None)
        for name in ("zero-shot", "gda-real", "gda-synthetic", "gda-real+synthetic")
    }
    top1 = {name: outcome.metrics["top1"] for name, outcome in outcomes.items()}
    assert min(top1.values()) == top1.pop("zero-shot") < 60
    assert min(top1.values()) > 85
    assert outcomes["gda-real+synthetic"].metrics["gaussian_weight"] in WEIGHTS
    assert (outcomes["gda-real+synthetic"].metrics["n_real"], outcomes["gda-real"].metrics["n_synthetic"]) == (6, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.clip.model.state_dict().items())


def test_without_validation_photos_shots_that_were_left_out_choose_the_weight(config, few_shot):
    without = replace(few_shot, val=())
    trainer = SettingTrainer(config, without, torch.device("cpu"), ALONE)
    found = {}
    for folds in (2, 0):
        run = trainer.with_knobs({"folds": folds}).run
        found[folds] = run("gda-real", None, lambda step, reading: None).metrics
    assert (found[2]["chosen_by"], found[2]["n_val"]) == ("folds", len(few_shot.photos))
    assert (found[0]["chosen_by"], found[0]["val_top1"], found[0]["gaussian_weight"]) == (None, None, 1.0)
    assert found[2]["top1"] >= found[0]["top1"]


def test_photos_are_changed_in_fp32_whatever_the_precision(config, few_shot, monkeypatch):
    """Under autocast crops are cut to half a pixel, and a GPU's blur is bf16, which does not fit into fp32 images."""
    found, apply = [], Augment.apply
    monkeypatch.setattr(Augment, "apply", lambda *args: found.append(torch.is_autocast_enabled("cpu")) or apply(*args))
    changes = {"classify.precision": "bf16", "classify.augment.blur": 1.0, "classify.settings": ["gda-real"]}
    trainer = SettingTrainer(config.updated(changes), few_shot, torch.device("cpu"), ALONE)
    assert trainer.run("gda-real", None, lambda step, reading: None).metrics["top1"] > 80
    assert set(found) == {False}


def test_its_head_is_all_that_a_reader_needs(config, few_shot):
    trainer = SettingTrainer(config, few_shot, torch.device("cpu"), ALONE)
    outcome = trainer.run("gda-real", None, lambda step, reading: None)
    assert set(outcome.files) == {"head.safetensors", "labels.json", "logits.parquet"}
    head, clip = load(outcome.files["head.safetensors"]), load_clip(config.classify.model, None, "cpu")
    hits = 0
    for photo in few_shot.test:
        image = clip.preprocess(trainer._source.read(photo.key))[None]
        with torch.no_grad():
            features = clip.model.encode_image(image, normalize=True)
        hits += int((head["logit_scale"] * features @ head["text_features"].T + head["bias"]).argmax() == photo.label)
    assert 100 * hits / len(few_shot.test) == pytest.approx(outcome.metrics["top1"])
