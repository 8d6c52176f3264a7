"""A checkpoint folder that plain open_clip loads."""

from __future__ import annotations

import open_clip
import pytest
import torch

from datadream.models.clip.export import save_checkpoint
from datadream.models.clip.load import ClipModel, load_clip
from datadream.models.clip.text_tower import TextTower
from datadream.recipes import TINY

PROMPTS = ["a photo of a digit two", "a photo of a digit five"]


def test_plain_open_clip_loads_it(tmp_path):
    clip = load_clip(TINY["classify.model"], None, "cpu")
    with torch.no_grad():
        clip.model.visual.proj.mul_(-1)
    folder = save_checkpoint(clip, TINY["classify.model"], tmp_path / "clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens, images = open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS), torch.randn(2, 3, 32, 32)
    assert torch.equal(tokens, clip.tokenizer(PROMPTS))
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))
    assert torch.equal(model.encode_image(images), clip.model.encode_image(images))
    assert str(preprocess) == str(clip.preprocess)


def test_an_architecture_with_open_clips_own_tokenizer(tmp_path, monkeypatch):
    """RN50 with random weights of few layers: its config names no tokenizer."""
    config = open_clip.get_model_config("RN50") | {"embed_dim": 16}
    config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8}
    config["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    monkeypatch.setattr("datadream.models.clip.export.model_config", lambda name: config)
    model = open_clip.CLIP(**config).eval()
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0.5,) * 3, "std": (0.5,) * 3})
    clip = ClipModel(model, lambda image: image, open_clip.get_tokenizer("RN50"), TextTower(model))
    loaded = load_clip(f"local-dir:{save_checkpoint(clip, 'RN50', tmp_path)}", None, "cpu")
    assert torch.equal(loaded.tokenizer(PROMPTS), clip.tokenizer(PROMPTS))
    torch.testing.assert_close(
        loaded.encode_text(clip.tokenizer(PROMPTS)), model.encode_text(clip.tokenizer(PROMPTS), normalize=True)
    )


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "precious").write_text("x")
    clip = load_clip(TINY["classify.model"], None, "cpu")
    with pytest.raises(ValueError, match="exists already"):
        save_checkpoint(clip, TINY["classify.model"], tmp_path)
