"""Files for other programs hold the same adapter."""

import json

import safetensors
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from datadream.models.diffusion.kohya import Base, to_kohya
from datadream.models.diffusion.merge import InPlaceMerger
from datadream.models.diffusion.pipeline import load_pipeline
from tests.models.adapters import random_adapter, unet_output


def test_plain_diffusers_reads_it_as_the_same_adapter(pipeline_folder, tmp_path):
    weights = random_adapter(pipeline_folder, seed=1)
    pipeline = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    file = tmp_path / "cat.safetensors"
    file.write_bytes(to_kohya(weights, Base.of(pipeline), "cat"))
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    base = unet_output(plain)
    plain.load_lora_weights(str(tmp_path), weight_name=file.name)
    InPlaceMerger(pipeline).merge([(weights, 1.0)])
    assert (unet_output(plain) - base).abs().max() > 1e-2
    torch.testing.assert_close(unet_output(plain), unet_output(pipeline), rtol=1e-4, atol=1e-5)


def test_names_alphas_and_metadata_are_kohyas(pipeline_folder, tmp_path):
    pipeline = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    file = tmp_path / "cat.safetensors"
    file.write_bytes(to_kohya(random_adapter(pipeline_folder, seed=1), Base.of(pipeline), "cat"))
    with safetensors.safe_open(file, "pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
        alphas = {opened.get_tensor(name).item() for name in names if name.endswith(".alpha")}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in names
    assert alphas == {4.0}
    assert len(names) % 3 == 0
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    assert metadata["modelspec.title"] == "cat"
    assert json.loads(metadata["ss_network_args"]) == {}


def test_the_base_model_is_described_alike_by_its_configs(pipeline_folder):
    pipeline = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    assert Base.read(str(pipeline_folder), None) == Base.of(pipeline)
