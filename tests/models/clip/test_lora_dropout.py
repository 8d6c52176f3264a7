"""Dropout of LoRA's inputs: loralib's formula, and masks that belong to images and tokens, whoever computes them."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch import Tensor, nn

from datadream.models.clip.image_tower import encode_images
from datadream.models.clip.lora_dropout import LoraDropout
from datadream.models.clip.text_tower import PackedPrompts, TextTower
from datadream.models.clip.trainable import check_dropout, make_trainable, trainable_parameters, trainable_state
from tests.models.dropped_lora import keep_in_images, keep_in_prompts, with_dropped_lora

TEXT = {"context_length": 12, "vocab_size": 30, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
END = 29


def clip(
    projections: tuple[str, ...] = ("q", "v"), vision: dict | None = None, image_tower: str = "auto", **text
) -> nn.Module:
    """A random CLIP whose LoRA has learnt something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim=24, vision_cfg=vision or VIT, text_cfg=TEXT | text).eval()
        make_trainable(model, rank=4, alpha=8, projections=projections, seed=0, image_tower=image_tower)
        for parameter in trainable_parameters(model):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def untrained(model: nn.Module) -> nn.Module:
    """A plain model with the weights from before LoRA."""
    plain = open_clip.CLIP(embed_dim=24, vision_cfg=VIT, text_cfg=TEXT)
    weights = {
        name.replace("parametrizations.", "").removesuffix(".original"): weight
        for name, weight in model.state_dict().items()
        if not name.endswith((".0.A", ".0.B"))
    }
    plain.load_state_dict(weights)
    return plain


def pixels(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prompts() -> Tensor:
    """Three, of which the first two tokens are common."""
    tokens = torch.zeros(3, 12, dtype=torch.int64)
    for row, ids in enumerate(([5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12, 13])):
        tokens[row, : len(ids)] = torch.tensor(ids)
        tokens[row, len(ids)] = END
    return tokens


@pytest.mark.parametrize("projections", [("q", "v"), ("q", "k", "v", "out"), ("k", "out"), ("out",)])
def test_features_and_gradients_are_those_of_loralib(projections):
    model, dropout, images, tokens = clip(projections), LoraDropout(0.4, seed=3), pixels(5), prompts()
    of_images = dropout.of_images(range(5))
    lora = {name: tensor.requires_grad_() for name, tensor in trainable_state(model).items()}
    plain = with_dropped_lora(untrained(model), lora, scale=8 / 4)
    keep_in_images(plain, model, of_images, images)
    keep_in_prompts(plain, model, dropout, tokens)
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    features = [
        (plain.encode_image(images, normalize=True), plain.encode_text(tokens, normalize=True)),
        (encode_images(model, images, of_images), TextTower(model).encode(tokens, dropout=dropout)),
    ]
    torch.testing.assert_close(*features, atol=1e-5, rtol=1e-5)
    for image, text in features:
        (image @ text.T * weights).sum().backward()
    expected = {name: tensor.grad for name, tensor in lora.items()}
    ours = _gradients_by_name(model)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert (features[1][0] - encode_images(model, images)).abs().max() > 1e-3


def test_bf16_only_rounds():
    """To 8 bits; gradients are kept in fp32."""
    model, dropout, images, tokens = clip(("q", "k", "v", "out")), LoraDropout(0.4, seed=3), pixels(5), prompts()
    features = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            image = encode_images(model, images, dropout.of_images(range(5)))
            features.append((image, TextTower(model).encode(tokens, dropout=dropout)))
    exact, rounded = features
    assert not torch.equal(rounded[0], exact[0])
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)
    (rounded[0] @ rounded[1].T).square().sum().backward()
    for parameter in trainable_parameters(model):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any()


def _gradients_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Under the names of `trainable_state`."""
    gradients = copy.deepcopy(model)
    for copied, parameter in zip(trainable_parameters(gradients), trainable_parameters(model), strict=True):
        copied.data = parameter.grad
    return trainable_state(gradients)


def test_a_share_of_the_inputs_is_dropped():
    """Everywhere, in every layer, step and image anew."""
    model, embedded = clip(("q", "k", "v", "out")), torch.zeros(4, 17, 48)
    masks = [
        layer.kept
        for seed in (1, 2)
        for block in LoraDropout(0.1, seed, range(4)).in_image_blocks(model.visual.transformer, embedded)
        for layer in (block.in_proj, block.out_proj)
    ]
    rows = torch.stack(masks).flatten(0, 1).flatten(1)
    assert len(rows) == len(rows.unique(dim=0)) == 2 * 3 * 2 * 4
    deviation = (0.1 * 0.9 / rows.shape[1]) ** 0.5
    assert ((~rows).float().mean(dim=1) - 0.1).abs().max() < 5 * deviation
    assert (~rows).float().mean().item() == pytest.approx(0.1, abs=5 * deviation / len(rows) ** 0.5)


def test_an_image_is_dropped_alike_in_any_batch():
    model, dropout, images = clip(), LoraDropout(0.4, seed=3), pixels(6)
    whole = encode_images(model, images, dropout.of_images(range(6)))
    some = encode_images(model, images[[4, 1]], dropout.of_images([4, 1]))
    torch.testing.assert_close(some, whole[[4, 1]], atol=1e-6, rtol=0)


def test_a_prompt_is_dropped_alike_in_any_share():
    model, tokens = clip(("q", "out")), prompts()
    whole, *parts = (
        PackedPrompts.of(tokens, tokens.argmax(dim=1), part) for part in (slice(0, 3), slice(0, 1), slice(1, 3))
    )
    masks = [
        LoraDropout(0.4, seed=3).in_text_blocks(
            model.transformer, torch.zeros(len(packed.ids), 32), packed.n_all, packed.rows
        )
        for packed in (whole, *parts)
    ]
    n = whole.n_prefix
    for expected, *own in zip(*masks, strict=True):
        for layer in ("in_proj", "out_proj"):
            kept, *shares = (getattr(block, layer).kept for block in (expected, *own))
            assert all(torch.equal(share[:n], kept[:n]) for share in shares)
            assert torch.equal(torch.cat([share[n:] for share in shares]), kept[n:])


@pytest.mark.parametrize("vision", [RESNET, VIT], ids=["RN50", "ViT"])
def test_a_fully_trained_image_tower_is_not_dropped(vision):
    """As the paper's RN50: LoRA, and so its dropout, is in the text tower alone."""
    model = clip(vision=vision, image_tower="full")
    dropout, images, tokens = LoraDropout(0.4, seed=3), pixels(4), prompts()
    check_dropout(model, "mine")
    assert torch.equal(encode_images(model, images, dropout.of_images(range(4))), encode_images(model, images))
    tower = TextTower(model)
    difference = tower.encode(tokens, dropout=dropout) - tower.encode(tokens)
    assert difference.abs().max() > 1e-3


def test_lora_that_cannot_be_dropped_is_refused():
    with pytest.raises(ValueError, match=r"text tower of 'mine', .* Use classify.lora_dropout=0"):
        check_dropout(clip(no_causal_mask=True), "mine")
    with pytest.raises(ValueError, match=r"image tower of 'mine'"):
        check_dropout(clip(vision=VIT | {"pool_type": "avg"}), "mine")
    check_dropout(clip(("q",), block_type="custom"), "text tower without LoRA")


def test_dropout_of_other_images_is_refused():
    with pytest.raises(ValueError, match="for 3 images, not for the 2"):
        encode_images(clip(), pixels(2), LoraDropout(0.1, seed=0, images=range(3)))
