"""Merged weights are what plain diffusers makes of our files."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from datadream.models.diffusion.merge import InPlaceMerger
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import ADAPTER_WEIGHTS
from tests.models.adapters import random_adapter, unet_output

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, CPU, torch.float32)


@pytest.fixture(scope="module")
def weights(pipeline_folder) -> bytes:
    return random_adapter(pipeline_folder, seed=1)


def test_merged_equals_plain_diffusers_with_the_file_loaded(pipeline, pipeline_folder, weights, tmp_path):
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(weights)
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    base = unet_output(pipeline)
    plain.load_lora_weights(tmp_path)
    InPlaceMerger(pipeline).merge([(weights, 1.0)])
    expected = unet_output(plain)
    assert (expected - base).abs().max() > 1e-2
    torch.testing.assert_close(unet_output(pipeline), expected, rtol=1e-4, atol=1e-5)


def test_merges_do_not_drift_and_the_base_returns_to_the_bit(pipeline, weights):
    base = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    pointers = {name: p.data_ptr() for name, p in pipeline.unet.named_parameters()}
    merger = InPlaceMerger(pipeline)
    merger.merge([(weights, 1.0)])
    once = unet_output(pipeline)
    for number in range(1000):
        merger.merge([(weights, 1 + number % 3)])
    merger.merge([(weights, 1.0)])
    assert torch.equal(unet_output(pipeline), once)
    merger.merge([])
    assert all(torch.equal(p, base[name]) for name, p in pipeline.unet.named_parameters())
    assert pointers == {name: p.data_ptr() for name, p in pipeline.unet.named_parameters()}


def test_a_mixture_equals_plain_diffusers_with_weighted_adapters(pipeline, pipeline_folder, weights, tmp_path):
    other = random_adapter(pipeline_folder, seed=2)
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    for name, data in (("one", weights), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ADAPTER_WEIGHTS).write_bytes(data)
        plain.load_lora_weights(tmp_path / name, adapter_name=name)
    plain.set_adapters(["one", "other"], [0.7, 0.3])
    InPlaceMerger(pipeline).merge([(weights, 0.7), (other, 0.3)])
    torch.testing.assert_close(unet_output(pipeline), unet_output(plain), rtol=1e-4, atol=1e-5)
