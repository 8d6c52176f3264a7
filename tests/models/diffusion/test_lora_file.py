"""LoRA files by others mean here what plain diffusers makes of them, or are refused."""

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from datadream.models.diffusion.lora_file import check_fit, layer_shapes, read_lora
from datadream.models.diffusion.merge import InPlaceMerger
from datadream.models.diffusion.pipeline import load_pipeline
from tests.models.adapters import random_adapter, unet_output

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
TEXT = "lora_te_text_model_encoder_layers_1"


def kohya(layers: dict[str, tuple[tuple[int, ...], tuple[int, ...], float | None]]) -> bytes:
    """A file of layers with the shapes of down and up, and their alphas."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, (down, up, alpha) in layers.items():
        state[f"{name}.lora_down.weight"] = torch.randn(down, generator=generator) / 4
        state[f"{name}.lora_up.weight"] = torch.randn(up, generator=generator) / 4
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return safetensors.torch.save(state)


FILES = {
    "one alpha and rank": kohya(
        {
            f"{UNET}_attn1_to_q": ((4, 16), (16, 4), 1.0),
            f"{UNET}_attn2_to_k": ((4, 32), (16, 4), 1.0),
            f"{TEXT}_self_attn_out_proj": ((4, 32), (32, 4), 1.0),
            f"{TEXT}_self_attn_q_proj": ((4, 32), (32, 4), 1.0),
        }
    ),
    "other ranks": kohya(
        {
            f"{UNET}_attn1_to_q": ((8, 16), (16, 8), 2.0),
            f"{UNET}_attn2_to_out_0": ((3, 16), (16, 3), 2.0),
            f"{TEXT}_self_attn_out_proj": ((5, 32), (32, 5), 2.0),
        }
    ),
    "feed-forward, projections and convolutions": kohya(
        {
            f"{UNET}_ff_net_0_proj": ((2, 16), (128, 2), 1.0),
            f"{UNET}_ff_net_2": ((2, 64), (16, 2), 1.0),
            "lora_unet_up_blocks_1_attentions_0_proj_in": ((2, 16), (16, 2), 1.0),
            "lora_unet_down_blocks_0_resnets_0_conv1": ((2, 16, 3, 3), (16, 2, 1, 1), 1.0),
            f"{TEXT}_mlp_fc1": ((2, 32), (64, 2), 1.0),
        }
    ),
    "no alpha": kohya({f"{UNET}_attn1_to_q": ((4, 16), (16, 4), None)}),
    "half precision": safetensors.torch.save(
        {
            k: v.half()
            for k, v in safetensors.torch.load(kohya({f"{UNET}_attn1_to_q": ((4, 16), (16, 4), 3.0)})).items()
        }
    ),
}


def fused(pipeline_folder, tmp_path, data: bytes) -> StableDiffusionPipeline:
    (tmp_path / "given.safetensors").write_bytes(data)
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None, dtype=torch.float32)
    plain.load_lora_weights(tmp_path, weight_name="given.safetensors")
    plain.fuse_lora()
    plain.unload_lora_weights()
    return plain


def check_merged_equals_fused(pipeline_folder, tmp_path, data: bytes) -> None:
    plain = fused(pipeline_folder, tmp_path, data)
    ours = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    base = {name: weight.clone() for name, weight in ours.unet.named_parameters()}
    InPlaceMerger(ours).merge([(data, 1.0)])
    for model in ("unet", "text_encoder"):
        expected = dict(getattr(plain, model).named_parameters())
        for name, weight in getattr(ours, model).named_parameters():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert any((weight != base[name]).any() for name, weight in ours.unet.named_parameters())
    torch.testing.assert_close(unet_output(ours), unet_output(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FILES)
def test_a_kohya_file_merges_as_plain_diffusers_fuses_it(kind, pipeline_folder, tmp_path):
    check_merged_equals_fused(pipeline_folder, tmp_path, FILES[kind])


def test_every_layer_has_its_own_alpha_and_a_text_encoder_may_be_adapted_in_part():
    """Of kohya's format itself: diffusers 0.42 takes one alpha for all layers, and knows no text encoder without
    out_proj."""
    data = kohya(
        {
            f"{UNET}_attn1_to_q": ((8, 16), (16, 8), 2.0),
            f"{UNET}_attn2_to_out_0": ((3, 16), (16, 3), 6.0),
            f"{TEXT}_self_attn_q_proj": ((4, 32), (32, 4), 1.0),
        }
    )
    state, found = safetensors.torch.load(data), read_lora(data)
    layers = "unet.down_blocks.0.attentions.0.transformer_blocks.0", "text_encoder.text_model.encoder.layers.1"
    names = {
        f"{layers[0]}.attn1.to_q": (f"{UNET}_attn1_to_q", 2 / 8),
        f"{layers[0]}.attn2.to_out.0": (f"{UNET}_attn2_to_out_0", 6 / 3),
        f"{layers[1]}.self_attn.q_proj": (f"{TEXT}_self_attn_q_proj", 1 / 4),
    }
    assert found.keys() == names.keys()
    for layer, (name, factor) in names.items():
        expected = factor * state[f"{name}.lora_up.weight"] @ state[f"{name}.lora_down.weight"]
        torch.testing.assert_close(found[layer].update(torch.device("cpu")), expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_file_of_peft_with_another_alpha_merges_as_plain_diffusers_fuses_it(rslora, pipeline_folder, tmp_path):
    trained = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    config = LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=["to_q", "to_v"],
        rank_pattern={"attn2.to_q": 2},
        alpha_pattern={"attn2.to_q": 3},
        use_rslora=rslora,
    )
    trained.unet.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in trained.unet.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 4
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(trained.unet),
        unet_lora_adapter_metadata=trained.unet.peft_config["default"].to_dict(),
    )
    data = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    check_merged_equals_fused(pipeline_folder, tmp_path, data)


def test_files_fit_the_model_that_they_were_made_for_or_name_the_layer(pipeline_folder):
    shapes = layer_shapes(str(pipeline_folder), None)
    for data in (*FILES.values(), random_adapter(pipeline_folder, seed=1)):
        check_fit(read_lora(data), shapes)
    layer = r"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    with pytest.raises(ValueError, match=f"is for a layer '{layer}' of 16 x 768, which has 16 x 32 in the model"):
        check_fit(read_lora(kohya({f"{UNET}_attn2_to_k": ((4, 768), (16, 4), 1.0)})), shapes)
    with pytest.raises(ValueError, match=r"changes layer 'unet.down_blocks.7.*', which the model does not have"):
        check_fit(read_lora(kohya({f"{UNET.replace('0', '7', 1)}_attn1_to_q": ((4, 16), (16, 4), 1.0)})), shapes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>", "is no safetensors file"),
        (safetensors.torch.save({}), "holds no weights"),
        (
            safetensors.torch.save({"transformer.x.lora_A.weight": torch.ones(1, 1)}),
            "holds 'transformer.x.lora_A.weight'",
        ),
        (safetensors.torch.save({f"{UNET}_attn1_to_q.hada_w1_a": torch.ones(1, 1)}), "only plain LoRA can be merged"),
        (safetensors.torch.save({f"{UNET}_attn1_to_q.dora_scale": torch.ones(1, 1)}), "only plain LoRA can be merged"),
        (safetensors.torch.save({f"{UNET}_attn1_to_q.lora_down.weight": torch.ones(1, 1)}), "cannot name"),
        (safetensors.torch.save({"unet.a.lora_A.weight": torch.ones(1, 1)}), "no second matrix that fits"),
        (safetensors.torch.save({"lora_te2_text_model_x.lora_down.weight": torch.ones(1, 1)}), "cannot name"),
    ],
)
def test_what_is_no_plain_lora_is_refused_in_one_line(data, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_lora(data)
    assert "\n" not in str(refused.value)
