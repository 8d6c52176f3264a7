"""Learned words stand where CoOp puts them, and nothing else of the model learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datadream.models.clip.context import check_context, name_prompts, with_context
from datadream.models.clip.load import load_clip
from datadream.models.clip.trainable import (
    load_trainable_state,
    make_trainable,
    merge_lora,
    restore,
    trainable_parameters,
    trainable_state,
)
from tests.tiny_clip import CONTEXT

NAMES = ["cat", "stray dog", "emu"]
LORA = {"rank": 4, "alpha": 8, "projections": ("q", "v"), "seed": 0}


def as_coop(model: nn.Module, names: Tensor, vectors: Tensor) -> Tensor:
    """CoOp's text encoder on plain open_clip: embeddings of start, learned words, the rest; then the whole tower."""
    embedded = model.token_embedding(names)
    words = vectors.expand(len(names), -1, -1)
    x = torch.cat([embedded[:, :1], words, embedded[:, 1 : CONTEXT - len(vectors)]], dim=1)
    x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
    ends = names.argmax(dim=-1) + len(vectors)
    return F.normalize(model.ln_final(x)[torch.arange(len(x)), ends] @ model.text_projection, dim=-1)


def test_learned_words_are_coops_and_alone_learn(folder):
    plain, clip = load_clip(folder, None, "cpu"), load_clip(folder, None, "cpu")
    names = clip.tokenizer(name_prompts(NAMES))
    tokens, ids = with_context(clip.model, names, 4)
    make_trainable(clip.model, **LORA, context=ids)
    (vectors,) = trainable_parameters(clip.model)
    assert vectors.shape == (4, 32)
    ours, weights = clip.encode_text(tokens), torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    (ours * weights).sum().backward()
    copied = vectors.detach().clone().requires_grad_()
    coops = as_coop(plain.model, names, copied)
    (coops * weights).sum().backward()
    torch.testing.assert_close(ours, coops, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors.grad, copied.grad, atol=1e-5, rtol=1e-4)
    assert [name for name, weight in clip.model.named_parameters() if weight.requires_grad] == [
        "token_embedding.parametrizations.weight.0.vectors"
    ]


def test_learned_words_are_saved_merged_and_forgotten(folder):
    clip = load_clip(folder, None, "cpu")
    untouched = {name: weight.clone() for name, weight in clip.model.state_dict().items()}
    tokens, ids = with_context(clip.model, clip.tokenizer(name_prompts(NAMES)), 4)
    make_trainable(clip.model, **LORA, context=ids)
    with torch.no_grad():
        trainable_parameters(clip.model)[0].add_(1)
    state, expected = trainable_state(clip.model), clip.encode_text(tokens).detach()
    restore(clip.model)
    assert all(torch.equal(weight, untouched[name]) for name, weight in clip.model.state_dict().items())
    make_trainable(clip.model, **LORA, context=ids)
    load_trainable_state(clip.model, state)
    merge_lora(clip.model)
    assert clip.model.state_dict().keys() == untouched.keys()
    assert torch.equal(clip.encode_text(tokens), expected)


def test_words_that_no_class_uses_stand_for_them(folder):
    clip = load_clip(folder, None, "cpu")
    names = clip.tokenizer(name_prompts(NAMES))
    tokens, ids = with_context(clip.model, names, 8)
    assert len(set(ids)) == 8
    assert not set(ids) & set(names.unique().tolist())
    assert tokens.shape == names.shape
    assert (tokens.argmax(dim=-1) == names.argmax(dim=-1) + 8).all()


def test_names_that_leave_no_room(folder):
    with pytest.raises(ValueError, match=r"context is 30, but of the text encoder's 32 places .* leaves 21\."):
        check_context(folder, NAMES, 30)
    check_context(folder, NAMES, 21)


def test_a_text_tower_of_another_kind():
    with pytest.raises(ValueError, match="classify.context needs a text tower of OpenAI's kind"):
        check_context("ViT-B-16-SigLIP", NAMES, 4)  # without asking for its tokenizer, which is the Hub's
