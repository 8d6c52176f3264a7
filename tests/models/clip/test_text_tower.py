"""Packed prompts give what plain open_clip gives, forward and backward; other towers are left to open_clip."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datadream.models.clip import text_tower
from datadream.models.clip.load import load_clip
from datadream.models.clip.lora_dropout import LoraDropout
from datadream.models.clip.text_tower import TextTower
from datadream.models.clip.trainable import make_trainable, trainable_parameters
from datadream.recipes import TINY
from datadream.runtime.collectives import ALONE, Collectives

CONTEXT, END = 77, 99
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8}
LORA = {"rank": 4, "alpha": 8, "projections": ("q", "k", "v", "out"), "seed": 0}


def clip(text: dict | None = None, kind: type[nn.Module] = open_clip.CLIP) -> nn.Module:
    """A random CLIP with trained LoRA; ViT-B/16's text tower, narrower, where `text` says nothing else."""
    config = {"context_length": CONTEXT, "vocab_size": END + 1, "width": 32, "heads": 4, "layers": 3} | (text or {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(embed_dim=24, vision_cfg=VISION, text_cfg=config, quick_gelu=True).eval()
        make_trainable(model, **LORA)
        for parameter in trainable_parameters(model):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def prompts(lengths: list[int], shared: int = 4) -> Tensor:
    """Token ids as open_clip's tokenizer pads them; the first `shared` are the same in all prompts."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    beginning = torch.randint(1, END, (CONTEXT,), generator=rng)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, END, (length,), generator=rng)
        row[: min(shared, length)] = beginning[: min(shared, length)]
        row[length] = END
    return tokens


def outcome(model: nn.Module, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features, and gradients of a loss on them; none where open_clip's blocks take no LoRA."""
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    return features.detach(), gradients(model, (features * weights).sum()) if features.requires_grad else []


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """Gradients of the text tower's LoRA."""
    found = torch.autograd.grad(loss, trainable_parameters(model), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def assert_equals_plain(model: nn.Module, tokens: Tensor) -> None:
    plain = outcome(model, model.encode_text(tokens, normalize=True))
    ours = outcome(model, TextTower(model).encode(tokens))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "shared"),
    [([8, 5, 12, 6], 4), ([6, 6], 6), ([7], 4), ([3, 76], 0), ([9, 5, 9], 9), ([0, 4], 4)],
    ids=["usual", "equal", "one", "full context", "one ends where others go on", "one is empty"],
)
def test_packed_prompts_equal_open_clips(lengths, shared):
    assert_equals_plain(clip(), prompts(lengths, shared))


def test_the_default_clips_text_tower_on_imagenets_prompts():
    """ViT-B/16 as OpenAI trained it, in shape, with two layers of random weights."""
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["text_cfg"]["layers"] = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config | {"vision_cfg": VISION}).eval()
        make_trainable(model, **LORA)
        for parameter in trainable_parameters(model):
            parameter.data += 0.02 * torch.randn_like(parameter)
    names = open_clip.IMAGENET_CLASSNAMES[::100]
    assert_equals_plain(model, open_clip.get_tokenizer("ViT-B-16-quickgelu")([f"a photo of a {n}" for n in names]))


@pytest.mark.parametrize("text", [{"pool_type": "eos", "eos_id": END}, {"proj_type": "none", "width": 24}])
def test_packed_equal_open_clips_for_other_ends_and_heads(text):
    assert_equals_plain(clip(text), prompts([8, 5, 12, 6]))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ({}, open_clip.CustomTextCLIP),
        ({"embed_cls": True, "pad_id": 0}, open_clip.CustomTextCLIP),
        ({"no_causal_mask": True}, open_clip.CLIP),
        ({"pool_type": "last"}, open_clip.CLIP),
        ({"block_type": "custom"}, open_clip.CLIP),
    ],
    ids=["text tower apart", "class embedding", "sees all", "pools the last", "other blocks"],
)
def test_other_towers_are_open_clips(text, kind):
    assert_equals_plain(clip(text, kind), prompts([8, 5, 12, 6]))


def test_the_embedded_clip():
    tiny = load_clip(TINY["classify.model"], None, "cpu")
    tokens = tiny.tokenizer([f"a photo of a {name}" for name in ("digit zero", "x", "letter of the alphabet")])
    expected = tiny.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(tiny.encode_text(tokens), expected, atol=1e-5, rtol=0)


def test_half_precision_is_as_near_as_open_clips():
    model, tokens = clip(), prompts([8, 5, 12, 6])
    exact = model.encode_text(tokens, normalize=True)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.normalize(model.encode_text(tokens).float(), dim=-1)
        ours = TextTower(model).encode(tokens)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_only_tokens_that_matter_are_computed():
    """Three prompts of 4 shared tokens and 4, 6 and 3 of their own, ends included, are 17 tokens and not 231."""
    model, tokens = clip(), prompts([7, 9, 6])
    seen = []
    model.transformer.resblocks[0].ln_1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    TextTower(model).encode(tokens)
    assert seen == [(17, 32)]
    flops = {}
    for name, encode in (("plain", model.encode_text), ("ours", TextTower(model).encode)):
        with FlopCounterMode(display=False) as counter:
            encode(tokens)
        flops[name] = counter.get_total_flops()
    assert flops["ours"] < flops["plain"] / 8


def test_what_evaluation_packed_serves_training():
    model, tokens = clip(), prompts([8, 5])
    tower = TextTower(model)
    with torch.inference_mode():
        tower.encode(tokens)
    assert outcome(model, tower.encode(tokens))[1]


def test_prompts_shared_out_give_the_features_and_gradients_of_one_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tower, "MIN_SHARE", 1)
    other = mp.spawn(_encode_on_second, args=(str(tmp_path),), nprocs=1, join=False)
    _encode_on(0, str(tmp_path))
    other.join()
    workers = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for expected, *shares in zip(_outcomes_of_a_share(clip(), ALONE), *workers, strict=True):
        for features, _ in shares:
            torch.testing.assert_close(features, expected[0], atol=1e-5, rtol=0)
        summed = [sum(parts) for parts in zip(*(parts for _, parts in shares), strict=True)]
        torch.testing.assert_close(summed, expected[1], atol=1e-5, rtol=1e-5)


def _outcomes_of_a_share(model: nn.Module, collectives: Collectives) -> list[tuple[Tensor, list[Tensor]]]:
    """A loss over 6 photos, of which a worker has its share; without and with dropout."""
    found = []
    for dropout in (None, LoraDropout(0.3, seed=4)):
        features = TextTower(model).encode(prompts([8, 5, 12, 6, 7]), collectives, dropout)
        photos = torch.randn(6, features.shape[1], generator=torch.Generator().manual_seed(3))[collectives.share(6)]
        loss = (photos @ features.T).logsumexp(dim=1).sum()
        found.append((features.detach(), gradients(model, loss)))
    return found


def _encode_on_second(_: int, folder: str) -> None:
    text_tower.MIN_SHARE = 1
    _encode_on(1, folder)


def _encode_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(_outcomes_of_a_share(clip(), Collectives(rank, 2)), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
