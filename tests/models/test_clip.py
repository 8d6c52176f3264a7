"""CLIP loading, and LoRA that starts as the identity and merges into a plain open_clip model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from datadream.models.clip import (
    add_lora,
    check_clip,
    input_size,
    load_clip,
    load_lora_state,
    lora_parameters,
    lora_state,
    merge_lora,
    remove_lora,
)
from tests.tiny_clip import PIXELS, save_tiny_clip

ALL = ("q", "k", "v", "out")
PROMPTS = ["a photo of a cat", "a photo of a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{save_tiny_clip(tmp_path_factory.mktemp('clip'))}"


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))


def features(model: nn.Module, folder: str, images: Tensor) -> tuple[Tensor, Tensor]:
    tokens = open_clip.get_tokenizer(folder)(PROMPTS)
    return model.encode_image(images), model.encode_text(tokens)


def plain(folder: str) -> nn.Module:
    return open_clip.create_model(folder).eval()


def perturb(model: nn.Module) -> None:
    """Trained weights, near enough."""
    rng = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(model):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)


def test_a_loaded_clip_is_open_clips_own(folder, images):
    clip = load_clip(folder, None, "cpu")
    for ours, theirs in zip(
        features(clip.model, folder, images), features(plain(folder), folder, images), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert (clip.size, clip.mean, clip.std) == (PIXELS, (0.5,) * 3, (0.25,) * 3)
    assert input_size(folder) == PIXELS
    assert input_size("ViT-L-14-336") == 336


def test_lora_is_the_identity_at_first(folder, images):
    model = plain(folder)
    before = features(model, folder, images)
    add_lora(model, rank=4, alpha=8, projections=ALL, seed=0)
    assert all(torch.equal(*pair) for pair in zip(before, features(model, folder, images), strict=True))


@torch.inference_mode()
def test_lora_is_the_identity_at_first_in_attentions_fast_path(folder, images):
    model = plain(folder)
    before = features(model, folder, images)
    add_lora(model, rank=4, alpha=8, projections=ALL, seed=0)
    torch.testing.assert_close(features(model, folder, images), before, atol=1e-6, rtol=0)


def test_lora_is_alpha_over_rank_times_ba_on_each_projection(folder):
    model = plain(folder)
    layer = model.transformer.resblocks[0].attn
    before = layer.in_proj_weight.detach().clone().chunk(3)
    add_lora(model, rank=4, alpha=8, projections=("q", "v"), seed=0)
    perturb(model)
    state, after = lora_state(model), layer.in_proj_weight.chunk(3)
    for index, projection in ((0, "q"), (2, "v")):
        down, up = (state[f"transformer.resblocks.0.attn.{projection}.lora_{name}"] for name in "AB")
        torch.testing.assert_close(after[index], before[index] + 8 / 4 * up @ down)
    assert torch.equal(after[1], before[1])
    assert torch.equal(layer.out_proj.weight, plain(folder).transformer.resblocks[0].attn.out_proj.weight)


def test_only_lora_of_both_towers_learns(folder, images):
    model = plain(folder)
    add_lora(model, rank=4, alpha=8, projections=ALL, seed=0)
    perturb(model)
    sum(part.square().sum() for part in features(model, folder, images)).backward()
    learning = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert {name.split(".")[-1] for name in learning} == {"A", "B"}
    assert {name.split(".")[0] for name in learning} == {"visual", "transformer"}
    assert len(learning) == len(lora_parameters(model)) == 2 * 2 * 4
    assert all(parameter.grad.abs().sum() > 0 for parameter in lora_parameters(model))


def test_the_seed_decides_where_lora_starts(folder):
    states = []
    for seed in (0, 0, 1):
        model = plain(folder)
        add_lora(model, rank=4, alpha=8, projections=ALL, seed=seed)
        states.append(lora_state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(*(state["transformer.resblocks.0.attn.q.lora_A"] for state in (states[0], states[2])))


def test_a_merged_model_is_a_plain_one(folder, images):
    model = plain(folder)
    add_lora(model, rank=4, alpha=8, projections=ALL, seed=0)
    perturb(model)
    parametrised = features(model, folder, images)
    merge_lora(model)
    fresh = plain(folder)
    fresh.load_state_dict(model.state_dict(), strict=True)
    for expected, merged, loaded in zip(
        parametrised, features(model, folder, images), features(fresh, folder, images), strict=True
    ):
        assert (merged - expected).abs().max() <= 1e-5
        assert (merged - loaded).abs().max() <= 1e-6


def test_lora_comes_off_without_a_trace(folder):
    model, untouched = plain(folder), plain(folder)
    add_lora(model, rank=4, alpha=8, projections=ALL, seed=0)
    perturb(model)
    remove_lora(model)
    assert model.state_dict().keys() == untouched.state_dict().keys()
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_lora_weights_move_to_another_model(folder, images):
    trained, other = plain(folder), plain(folder)
    for seed, model in enumerate((trained, other)):
        add_lora(model, rank=4, alpha=8, projections=ALL, seed=seed)
    perturb(trained)
    load_lora_state(other, lora_state(trained))
    assert all(
        torch.equal(*pair)
        for pair in zip(features(trained, folder, images), features(other, folder, images), strict=True)
    )


def test_lora_weights_of_another_kind_are_refused(folder):
    model = plain(folder)
    add_lora(model, rank=4, alpha=8, projections=("q",), seed=0)
    state = lora_state(model)
    remove_lora(model)
    add_lora(model, rank=4, alpha=8, projections=("q", "v"), seed=0)
    with pytest.raises(ValueError, match=r"attn.v.lora_A"):
        load_lora_state(model, state)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"'my-resnet' has no nn.MultiheadAttention"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), rank=4, alpha=8, projections=ALL, seed=0, name="my-resnet")


def test_nothing_to_train_is_refused(folder):
    with pytest.raises(ValueError, match=r"projections is empty"):
        add_lora(plain(folder), rank=4, alpha=8, projections=(), seed=0)


@pytest.mark.parametrize(
    ("model", "pretrained", "error", "message"),
    [
        ("ViT-B-16-quickglu", "openai", ValueError, r"ViT-B-16-quickglu.*Did you mean 'ViT-B-16-quickgelu'"),
        ("ViT-B-16-quickgelu", "opnai", ValueError, r"'opnai'.*Did you mean 'openai'"),
        ("ViT-B-16-quickgelu", None, ValueError, r"pretrained is unset.*openai"),
        ("local-dir:/nowhere", None, FileNotFoundError, r"/nowhere/open_clip_config.json"),
        ("package://datadream/nothing", None, FileNotFoundError, r"has no folder 'nothing'"),
        ("hf-hub:", None, ValueError, r"Hub id is missing"),
    ],
)
def test_unknown_ids_are_explained(model, pretrained, error, message):
    with pytest.raises(error, match=message):
        check_clip(model, pretrained)
    with pytest.raises(error, match=message):
        load_clip(model, pretrained, "cpu")


def test_a_folder_without_its_scheme_is_pointed_out(folder):
    path = folder.removeprefix("local-dir:")
    with pytest.raises(ValueError, match=f"use local-dir:{path}"):
        check_clip(path, None)


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path):
    folder = save_tiny_clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        check_clip(f"local-dir:{folder}", None)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no open_clip config"):
        check_clip(f"local-dir:{folder}", None)


def test_known_ids_pass(folder):
    check_clip("ViT-B-16-quickgelu", "openai")
    check_clip("ViT-B/32", "laion2b_s34b_b79k")
    check_clip(folder, None)
    check_clip("hf-hub:somebody/some-clip", None)
