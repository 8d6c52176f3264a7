"""Several adapters beside each other are what peft makes of each alone."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from datadream.models.diffusion import lora
from datadream.models.diffusion.lora import LoraLinear, StackedLora
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import ADAPTER_WEIGHTS
from tests.models.adapters import unet_output

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, CPU, torch.float32)


def randomised(pipeline, n_adapters: int, **settings) -> StackedLora:
    stacked = StackedLora(pipeline, n_adapters, rank=4, **{"text_encoder": True} | settings)
    stacked.weights.data.copy_(0.1 * torch.randn(stacked.weights.shape, generator=torch.Generator().manual_seed(0)))
    return stacked


def test_every_attention_layer_of_both_models_is_adapted(pipeline):
    attention = {name for name, _ in pipeline.unet.named_modules() if name.endswith(("attn1", "attn2"))}
    layers = {name for name, _ in pipeline.text_encoder.named_modules() if name.endswith("self_attn")}
    stacked = StackedLora(pipeline, 3, rank=4, text_encoder=True)
    assert len(stacked.parts) == 2 * 4 * (len(attention) + len(layers))
    trainable = [p for model in (pipeline.unet, pipeline.text_encoder) for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in stacked.parts}
    assert sum(p.numel() for p in stacked.parts) == stacked.weights.numel()
    assert stacked.weights.dtype == torch.float32


def test_a_layer_gives_each_adapter_its_share_of_the_batch():
    layer = LoraLinear(nn.Linear(5, 7), n_adapters=3, rank=2)
    for part in (layer.down, layer.up):
        nn.init.normal_(part)
    inputs = torch.randn(6, 4, 5)
    outputs = layer(inputs)
    for image in range(6):
        row = image // 2
        expected = layer.base(inputs[image]) + inputs[image] @ layer.down[row].T @ layer.up[row].T
        torch.testing.assert_close(outputs[image], expected)


def test_a_file_loads_in_plain_diffusers_as_the_row_it_came_from(pipeline, pipeline_folder, tmp_path):
    stacked = randomised(pipeline, 2)
    ours = unet_output(pipeline)
    for row in range(2):
        (tmp_path / ADAPTER_WEIGHTS).write_bytes(stacked.to_bytes(row))
        plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
        plain.load_lora_weights(tmp_path)
        # Our two images have an adapter each.
        torch.testing.assert_close(unet_output(plain)[row], ours[row], rtol=1e-4, atol=1e-5)


def test_a_new_adapter_changes_nothing_and_follows_its_seed(pipeline):
    before = unet_output(pipeline)
    stacked = StackedLora(pipeline, 1, rank=4, text_encoder=True)
    stacked.reset(0, seed=5)
    assert torch.equal(unet_output(pipeline), before)
    first = stacked.to_bytes(0)
    stacked.reset(0, seed=6)
    assert stacked.to_bytes(0) != first
    stacked.reset(0, seed=5)
    assert stacked.to_bytes(0) == first


def test_reset_touches_one_row_and_does_not_depend_on_it(pipeline):
    stacked = randomised(pipeline, 3)
    before = stacked.weights.detach().clone()
    stacked.reset(1, seed=5)
    assert torch.equal(stacked.weights[[0, 2]], before[[0, 2]])
    stacked.reset(2, seed=5)
    assert torch.equal(stacked.weights[1], stacked.weights[2])
    assert not torch.equal(stacked.weights[1], before[1])


def test_removed_the_pipeline_is_as_it_was(pipeline):
    before, names = unet_output(pipeline), set(pipeline.unet.state_dict())
    randomised(pipeline, 1).remove()
    assert set(pipeline.unet.state_dict()) == names
    assert torch.equal(unet_output(pipeline), before)


def test_stable_diffusion_21_gets_the_papers_adapters():
    """Shapes of the published configs, no memory: 128 UNet and 92 text layers at rank 16."""
    unet = {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    }
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    with torch.device("meta"):
        pipeline = SimpleNamespace(
            unet=UNet2DConditionModel(**unet), text_encoder=CLIPTextModel(CLIPTextConfig(**text))
        )
        stacked = StackedLora(pipeline, 2, rank=16, text_encoder=True)
    assert len(stacked.parts) == 2 * (128 + 92)
    assert stacked.weights.shape == (2, 6_334_464)


def test_other_attention_names_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(lora, "UNET_TARGETS", ("to_query",))
    with pytest.raises(ValueError, match="no attention layers named to_query"):
        StackedLora(pipeline, 1, rank=4, text_encoder=False)
