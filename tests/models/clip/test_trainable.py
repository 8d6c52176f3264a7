"""LoRA that starts as the identity and merges into a plain open_clip model, and fully trained image towers."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn

from datadream.config import ClassifyConfig
from datadream.models.clip.trainable import (
    check_trainable,
    load_trainable_state,
    make_trainable,
    merge_lora,
    restore,
    trainable_parameters,
    trainable_state,
)
from tests.models.plain_clip import features, plain

ALL = ("q", "k", "v", "out")


def perturb(model: nn.Module) -> None:
    """Trained weights, near enough."""
    rng = torch.Generator().manual_seed(1)
    for parameter in trainable_parameters(model):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)


def test_lora_is_the_identity_at_first(folder, images):
    model = plain(folder)
    before = features(model, folder, images)
    make_trainable(model, rank=4, alpha=8, projections=ALL, seed=0)
    assert all(torch.equal(*pair) for pair in zip(before, features(model, folder, images), strict=True))


@torch.inference_mode()
def test_lora_is_the_identity_at_first_in_attentions_fast_path(folder, images):
    model = plain(folder)
    before = features(model, folder, images)
    make_trainable(model, rank=4, alpha=8, projections=ALL, seed=0)
    torch.testing.assert_close(features(model, folder, images), before, atol=1e-6, rtol=0)


def test_lora_is_alpha_over_rank_times_ba_on_each_projection(folder):
    model = plain(folder)
    layer = model.transformer.resblocks[0].attn
    before = layer.in_proj_weight.detach().clone().chunk(3)
    make_trainable(model, rank=4, alpha=8, projections=("q", "v"), seed=0)
    perturb(model)
    state, after = trainable_state(model), layer.in_proj_weight.chunk(3)
    for index, projection in ((0, "q"), (2, "v")):
        down, up = (state[f"transformer.resblocks.0.attn.{projection}.lora_{name}"] for name in "AB")
        torch.testing.assert_close(after[index], before[index] + 8 / 4 * up @ down)
    assert torch.equal(after[1], before[1])
    assert torch.equal(layer.out_proj.weight, plain(folder).transformer.resblocks[0].attn.out_proj.weight)


def test_only_lora_of_both_towers_learns(folder, images):
    model = plain(folder)
    make_trainable(model, rank=4, alpha=8, projections=ALL, seed=0)
    perturb(model)
    sum(part.square().sum() for part in features(model, folder, images)).backward()
    learning = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert {name.split(".")[-1] for name in learning} == {"A", "B"}
    assert {name.split(".")[0] for name in learning} == {"visual", "transformer"}
    assert len(learning) == len(trainable_parameters(model)) == 2 * 2 * 4
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainable_parameters(model))


def test_the_seed_decides_where_lora_starts(folder):
    states = []
    for seed in (0, 0, 1):
        model = plain(folder)
        make_trainable(model, rank=4, alpha=8, projections=ALL, seed=seed)
        states.append(trainable_state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(*(state["transformer.resblocks.0.attn.q.lora_A"] for state in (states[0], states[2])))


def test_a_merged_model_is_a_plain_one(folder, images):
    model = plain(folder)
    make_trainable(model, rank=4, alpha=8, projections=ALL, seed=0)
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
    make_trainable(model, rank=4, alpha=8, projections=ALL, seed=0)
    perturb(model)
    restore(model)
    assert model.state_dict().keys() == untouched.state_dict().keys()
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_lora_weights_move_to_another_model(folder, images):
    trained, other = plain(folder), plain(folder)
    for seed, model in enumerate((trained, other)):
        make_trainable(model, rank=4, alpha=8, projections=ALL, seed=seed)
    perturb(trained)
    load_trainable_state(other, trainable_state(trained))
    assert all(
        torch.equal(*pair)
        for pair in zip(features(trained, folder, images), features(other, folder, images), strict=True)
    )


def test_lora_weights_of_another_kind_are_refused(folder):
    model = plain(folder)
    make_trainable(model, rank=4, alpha=8, projections=("q",), seed=0)
    state = trainable_state(model)
    restore(model)
    make_trainable(model, rank=4, alpha=8, projections=("q", "v"), seed=0)
    with pytest.raises(ValueError, match=r"attn.v.lora_A"):
        load_trainable_state(model, state)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"'my-resnet' has no nn.MultiheadAttention"):
        make_trainable(nn.Linear(2, 2), rank=4, alpha=8, projections=ALL, seed=0, image_tower="lora", name="my-resnet")


def test_nothing_to_train_is_refused(folder):
    with pytest.raises(ValueError, match=r"projections is empty"):
        make_trainable(plain(folder), rank=4, alpha=8, projections=(), seed=0)


def test_what_cannot_learn_is_told_without_weights(folder):
    for config in ({"model": "RN50"}, {"model": "ViT-B/16", "image_tower": "lora"}, {"model": folder}):
        check_trainable(ClassifyConfig(**config))
    with pytest.raises(ValueError, match=r"'RN50' has no nn.MultiheadAttention"):
        check_trainable(ClassifyConfig(model="RN50", image_tower="lora"))
    with pytest.raises(ValueError, match=r"projections is empty"):
        check_trainable(ClassifyConfig(model=folder, projections=()))


def test_lora_that_cannot_be_dropped_is_told_without_weights(folder):
    """SigLIP's text tower has LoRA, and CoCa's image tower pools by attention."""
    for name, tower in (("ViT-B-16-SigLIP", "text"), ("coca_ViT-B-32", "image")):
        check_trainable(ClassifyConfig(model=name, lora_dropout=0))
        check_trainable(ClassifyConfig(model=name, settings=("zero-shot", "gda-real")))
        with pytest.raises(ValueError, match=rf"in the {tower} tower of '{name}'"):
            check_trainable(ClassifyConfig(model=name, settings=("zero-shot", "real")))


def test_a_text_tower_of_hugging_faces_is_not_fetched_to_be_told_that_it_has_no_lora(monkeypatch):
    monkeypatch.setattr("open_clip.model.HFTextEncoder", lambda *_, **__: pytest.fail("fetched"))
    check_trainable(ClassifyConfig(model="roberta-ViT-B-32"))
    # Its image tower pools by attention.
    with pytest.raises(ValueError, match="lora_dropout cannot be applied"):
        check_trainable(ClassifyConfig(model="coca_roberta-ViT-B-32"))


def test_only_the_config_of_a_hub_model_is_fetched(folder, monkeypatch):
    fetched = []

    def fetch(model_id: str, filename: str | None = None, **_: object) -> str:
        fetched.append((model_id, filename))
        return f"{folder.removeprefix('local-dir:')}/{filename or 'open_clip_model.safetensors'}"

    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", fetch)
    check_trainable(ClassifyConfig(model="hf-hub:someone/tiny"))
    assert set(fetched) == {("someone/tiny", "open_clip_config.json")}


def small_resnet() -> nn.Module:
    text = {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


def test_a_resnet_learns_all_of_its_image_tower_but_not_its_statistics():
    """As the paper's RN50: the text tower has LoRA."""
    model, untouched = small_resnet(), small_resnet()
    make_trainable(model, rank=2, alpha=4, projections=("q", "v"), seed=0)
    before = trainable_state(model)
    names = {name for name, _ in untouched.visual.named_parameters(prefix="visual")}
    assert {name for name in before if "lora" not in name} == names
    assert {name.split(".")[0] for name in before if "lora" in name} == {"transformer"}
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    for _ in range(2):
        images, tokens = torch.randn(4, 3, 32, 32), torch.randint(50, (4, 16))
        optimizer.zero_grad()
        (model.encode_image(images) @ model.encode_text(tokens).T).diagonal().sum().backward()
        optimizer.step()
    after = trainable_state(model)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(*pair) for pair in zip(model.visual.buffers(), untouched.visual.buffers(), strict=True))
    restore(model)
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_vit_may_be_trained_fully_too(folder):
    model = plain(folder)
    make_trainable(model, rank=4, alpha=8, projections=(), seed=0, image_tower="full")
    names = {name for name, _ in plain(folder).visual.named_parameters(prefix="visual")}
    assert trainable_state(model).keys() == names
