"""ProtoAug's losses are those of a plain loop over pairs, and its regions those of plain k-means."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from datadream.classify import protoaug
from datadream.classify.ingest.batches import LabelledImages, LabelledPhotos, SyntheticImages, shuffled_batches
from datadream.classify.protoaug import PIXELS, Regions, disagreement, find_regions
from datadream.classify.setting import SettingTrainer
from datadream.runtime.collectives import ALONE
from tests.classify.toy import OFF, PROMPTS, augment_of, part, training_of, with_lora

CPU = torch.device("cpu")


def plain_disagreement(real: tuple[Tensor, Tensor] | None, synthetic: tuple[Tensor, Tensor]) -> list[float]:
    """Pair by pair, in the regions' order."""
    discrepancy = robustness = 0.0
    for region in range(4):
        ours = [logits for logits, found in zip(*synthetic, strict=True) if found == region]
        theirs = [logits for logits, found in zip(*real, strict=True) if found == region] if real else []
        for one, other in itertools.product(theirs, ours):
            discrepancy += ((one - other) ** 2).mean().item() / len(theirs)
        for one, other in itertools.combinations(ours, 2) if theirs or real is None else ():
            robustness += ((one - other) ** 2).mean().item() / len(ours)
    return [discrepancy, robustness]


@pytest.mark.parametrize("has_real", [True, False])
def test_losses_equal_a_loop_over_pairs(has_real):
    rng = torch.Generator().manual_seed(0)
    # Region 3 has no real image, region 2 no synthetic one, and region 1 one of each.
    regions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([3, 0, 0, 1, 3, 0, 3])
    real, synthetic = ((5 * torch.randn(len(found), 6, generator=rng), found) for found in regions)
    found = disagreement(real if has_real else None, synthetic)
    expected = plain_disagreement(real if has_real else None, synthetic)
    assert expected[1] > 0
    assert torch.stack(found).tolist() == pytest.approx(expected, rel=1e-5)


def noise(n: int, seed: int, side: int = PIXELS, dark: int = 0) -> LabelledImages:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256 - dark, (n, 3, side, side), dtype=torch.uint8, generator=rng)
    return LabelledImages(images, torch.arange(n) % 3)


def test_regions_are_those_of_k_means_on_the_pixels_of_all_images():
    pools, sizes = [noise(6, 0), noise(29, 1, dark=100)], [6, 29]
    parts = [part(pools[0], 4), part(pools[1], 8, seed=1)]
    regions = find_regions(parts, sizes, 3, seed=7, device=CPU, collectives=ALONE)
    assert regions.n_synthetic == 29
    drawn = [torch.cat([batch.images for batch in itertools.islice(each.batches(0), 4)]) for each in parts]
    pixels = torch.cat([images[:n] for images, n in zip(drawn, sizes, strict=True)]).flatten(1).float() / 255
    plain = KMeans(3, init="random", n_init=1, random_state=7).fit(pixels.numpy())
    torch.testing.assert_close(regions.centres, torch.from_numpy(plain.cluster_centers_))
    assert len(pixels.unique(dim=0)) == 35, "every image once"
    pool = LabelledImages(torch.cat([images[:n] for images, n in zip(drawn, sizes, strict=True)]), torch.zeros(35))
    assert regions.of(pool).tolist() == plain.labels_.tolist()
    again = find_regions(parts, sizes, 3, seed=7, device=CPU, collectives=ALONE)
    assert torch.equal(again.centres, regions.centres)


def test_there_are_no_more_regions_than_images_and_a_bound_of_those_looked_at(monkeypatch):
    parts = [part(noise(6, 0), 4), part(noise(9, 1), 4)]
    assert len(find_regions(parts, [6, 9], 99, seed=0, device=CPU, collectives=ALONE).centres) == 15
    monkeypatch.setattr(protoaug, "MOST_SAMPLED", 5)
    assert len(find_regions(parts, [6, 9], 99, seed=0, device=CPU, collectives=ALONE).centres) == 10


def test_whole_photos_are_compared_by_their_middle_squares():
    wide = torch.zeros(3, 64, 100, dtype=torch.uint8)
    wide[:, :, 18:82] = noise(1, 0, 64).images[0]
    photos = LabelledPhotos((wide, wide.transpose(1, 2)), torch.tensor([0, 1]))
    square = noise(1, 0, 64)
    turned = LabelledImages(square.images.transpose(2, 3), square.labels)
    centres = torch.cat([torch.nn.functional.avg_pool2d(each.images / 255, 2).flatten(1) for each in (square, turned)])
    regions = Regions(centres, 2)
    assert [regions.of(each).tolist() for each in (photos, square, turned)] == [[0, 1], [0], [1]]
    assert torch.cdist(protoaug._thumbnails(photos), centres).diagonal().max() < 1e-4


@pytest.mark.parametrize("origins", [("real", "synthetic"), ("synthetic",)])
def test_a_step_adds_them_to_the_cross_entropy(clip_id, shots, settings, origins):
    clip, knobs = with_lora(clip_id), settings.model_dump()
    pairs = {"real": part(shots, 7, 0.8, seed=1), "synthetic": part(shots, 5, 0.2, seed=2)}
    parts = [pairs[origin] for origin in origins]
    regions = find_regions(parts, [len(shots)] * len(parts), 2, seed=0, device=CPU, collectives=ALONE)
    weights = {"discrepancy": 3.0, "robustness": 50.0}
    on = type(settings)(**knobs | {"protoaug": weights, "lora_dropout": 0.0})
    off = type(settings)(**knobs | {"lora_dropout": 0.0})
    with_losses = training_of(clip, on, parts, augment_of(clip, **OFF), regions=regions).backward()
    without = training_of(clip, off, parts, augment_of(clip, **OFF)).backward()
    batches = [next(each.batches(0)) for each in parts]
    text = clip.encode_text(clip.tokenizer(PROMPTS))
    found = []
    for batch in batches:
        features = clip.encode_image((batch.images.float() / 255 - 0.5) / 0.25)
        found.append((clip.model.logit_scale.exp() * features @ text.T, regions.of(batch)))
    discrepancy, robustness = plain_disagreement(found[0] if len(found) > 1 else None, found[-1])
    expected = (3 * discrepancy + 50 * robustness) / len(shots)
    assert expected > 0
    assert (with_losses - without).item() == pytest.approx(expected, rel=1e-3)


def test_a_setting_with_synthetic_images_finds_its_regions_once(config, few_shot, shots, monkeypatch):
    asked = []
    find = protoaug.find_regions
    monkeypatch.setattr("datadream.classify.setting.find_regions", lambda *a, **k: asked.append(a[2]) or find(*a, **k))
    knobs = {"classify.steps": 2, "classify.eval_every": 2, "classify.protoaug.robustness": 40.0}
    trainer = SettingTrainer(config.updated(knobs), few_shot, CPU, ALONE)
    images = SyntheticImages(len(shots), partial(_batches, shots))
    for setting in ("real", "real+synthetic", "synthetic", "real+synthetic"):
        trainer.with_knobs({"weight_decay": 0.0}).run(setting, images, lambda step, reading: None)
    assert asked == [6, 6]  # two for each of three classes, and for each of the two settings
    plain = SettingTrainer(config.updated(knobs | {"classify.protoaug.robustness": 0.0}), few_shot, CPU, ALONE)
    outcomes = [each.run("synthetic", images, lambda step, reading: None) for each in (trainer, plain)]
    assert outcomes[0].metrics["curve"][0]["loss"] != outcomes[1].metrics["curve"][0]["loss"]


def _batches(shots: LabelledImages, size: int, seed: int, step: int):
    return shuffled_batches(shots, size, ALONE, seed, step)


def test_micro_batches_cannot_be_compared(config):
    with pytest.raises(ValueError, match="classify: protoaug compares all images of a batch; leave micro_batch_size"):
        config.updated({"classify.protoaug.discrepancy": 4.0, "classify.micro_batch_size": 8})
