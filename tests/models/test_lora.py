"""Our LoRA files and merged weights are what plain diffusers and peft make of them."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from datadream.models import lora
from datadream.models.diffusion import load_pipeline
from datadream.run_store import ADAPTER_WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, CPU, torch.float32)


@pytest.fixture(scope="module")
def weights(pipeline_folder) -> bytes:
    """A LoRA whose B is not zero."""
    pipeline = load_pipeline(str(pipeline_folder), None, CPU, torch.float32)
    lora.attach(pipeline, rank=4, text_encoder=True)
    lora.reset(pipeline, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, parameter in lora.named_lora_parameters(pipeline):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return lora.to_bytes(pipeline, text_encoder=True)


def unet_output(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    tokens = pipeline.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        encoded = pipeline.text_encoder(tokens)[0].expand(2, -1, -1)
        return pipeline.unet(latents, torch.tensor([10, 900]), encoded).sample


def test_every_attention_layer_of_both_models_is_adapted(pipeline):
    attention = {name for name, _ in pipeline.unet.named_modules() if name.endswith(("attn1", "attn2"))}
    layers = {name for name, _ in pipeline.text_encoder.named_modules() if name.endswith("self_attn")}
    lora.attach(pipeline, rank=4, text_encoder=True)
    names = [name for name, _ in lora.named_lora_parameters(pipeline)]
    assert len(names) == 2 * 4 * (len(attention) + len(layers))
    assert all(p.dtype == torch.float32 and p.requires_grad for _, p in lora.named_lora_parameters(pipeline))
    trainable = [
        p for module in (pipeline.unet, pipeline.text_encoder) for p in module.parameters() if p.requires_grad
    ]
    assert len(trainable) == len(names)


def test_a_new_adapter_changes_nothing_and_follows_its_seed(pipeline):
    before = unet_output(pipeline)
    lora.attach(pipeline, rank=4, text_encoder=True)
    lora.reset(pipeline, seed=5)
    assert torch.equal(unet_output(pipeline), before)
    first = lora.to_bytes(pipeline, text_encoder=True)
    lora.reset(pipeline, seed=6)
    assert lora.to_bytes(pipeline, text_encoder=True) != first
    lora.reset(pipeline, seed=5)
    assert lora.to_bytes(pipeline, text_encoder=True) == first


def test_merged_equals_plain_diffusers_with_the_file_loaded(pipeline, pipeline_folder, weights, tmp_path):
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(weights)
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    base = unet_output(pipeline)
    plain.load_lora_weights(tmp_path)
    lora.InPlaceMerger(pipeline).merge(weights)
    expected = unet_output(plain)
    assert (expected - base).abs().max() > 1e-2
    torch.testing.assert_close(unet_output(pipeline), expected, rtol=1e-4, atol=1e-5)


def test_merges_do_not_drift_and_the_base_returns_to_the_bit(pipeline, weights):
    base = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    pointers = {name: p.data_ptr() for name, p in pipeline.unet.named_parameters()}
    merger = lora.InPlaceMerger(pipeline)
    merger.merge(weights)
    once = unet_output(pipeline)
    for _ in range(20):
        merger.merge(None)
        merger.merge(weights)
    assert torch.equal(unet_output(pipeline), once)
    merger.merge(None)
    assert all(torch.equal(p, base[name]) for name, p in pipeline.unet.named_parameters())
    assert pointers == {name: p.data_ptr() for name, p in pipeline.unet.named_parameters()}


def test_other_attention_names_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(lora, "UNET_TARGETS", ("to_query",))
    with pytest.raises(ValueError, match="no attention layers named to_query"):
        lora.attach(pipeline, rank=4, text_encoder=False)
