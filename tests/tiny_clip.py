"""A small untrained CLIP, saved as open_clip saves one."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

PIXELS = 16
CONTEXT = 32


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Two layers in each tower, images of 16 pixels; load it as local-dir:<folder>."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _model_config(_save_tokenizer(folder))
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def _save_tokenizer(folder: Path) -> int:
    """Save a tokenizer of single letters and return its size; open_clip pools at the largest id, the end token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), start, end]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=CONTEXT,
    )
    tokenizer.save_pretrained(folder)
    return len(tokens)


def _model_config(vocabulary: int) -> dict:
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "hf_tokenizer_name": "local",
        "width": 32,
        "heads": 2,
        "layers": 2,
    }
    vision = {"image_size": PIXELS, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
    return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
