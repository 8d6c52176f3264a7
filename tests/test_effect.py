"""The embedded backbone shows what the method is for, with a wide margin and a fraction of the recipe's budget.

In one process, on the device code alone: what Ray adds is tested elsewhere.
"""

import pytest
import torch

from datadream import recipes
from datadream.adapt.lora_trainer import AdapterTrainer
from datadream.classify.ingest.batches import LabelledImages, SyntheticImages, shuffled_batches
from datadream.classify.setting import SettingTrainer
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots
from datadream.generate.sampler import Sampler
from datadream.methods import METHODS
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.runtime.collectives import ALONE

CPU = torch.device("cpu")


@pytest.mark.slow
def test_generated_images_alone_teach_clip_digits_it_did_not_know():
    changes = {
        "method": "datadream-dset",
        "adapt.steps_per_class": 20,
        "generate.images_per_class": 30,
        "generate.steps": 6,
        "classify.steps": 80,
        "classify.eval_every": 40,
    }
    config = recipes.digits(**changes)
    source = open_source("digits")
    few_shot = sample_shots(source.dataset(), config.data.n_shots, config.seed, config.data.prompt)
    plan = METHODS[config.method](few_shot, config)
    generated = _generate(config, plan, _adapt(config, plan, source))
    classifiers = SettingTrainer(config, few_shot, CPU, ALONE)
    synthetic = SyntheticImages(len(generated), lambda size, *rest: shuffled_batches(generated, size, ALONE, *rest))
    top1 = {
        setting: classifiers.run(setting, synthetic, lambda step, reading: None).metrics["top1"]
        for setting in ("zero-shot", "synthetic")
    }
    assert 50 < top1["zero-shot"] < 80
    assert top1["synthetic"] > top1["zero-shot"] + 7


def _pipeline(config):
    return load_pipeline(config.diffusion.model, None, CPU, torch.float32)


def _adapt(config, plan, source) -> bytes:
    (spec,) = plan.adapters
    trainer = AdapterTrainer(_pipeline(config), config.adapt, config.diffusion.resolution)
    (trained,) = trainer.train([spec], [[source.read(photo.key) for photo in spec.photos]])
    return trained.weights


def _generate(config, plan, adapter: bytes) -> LabelledImages:
    sampler = Sampler(_pipeline(config), config.generate, config.diffusion.resolution)
    images, labels = [], []
    for series in plan.images:
        pixels = sampler.generate(series, lambda _: adapter, source_is_never_read)
        images.append(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        labels += [series.label] * len(pixels)
    return LabelledImages(torch.cat(images), torch.tensor(labels))


def source_is_never_read(key: str):
    raise AssertionError(f"datadream-dset starts from noise, and yet {key} was asked for")
