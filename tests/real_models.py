"""Models in the real shapes, with random weights, saved in the forms in which people download them."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

N_MERGES = 49152 - 256 - 2
"""Of the words that CLIP's vocabulary is made of."""


def save_stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion 2.1-base, 1.29 billion numbers, as the fp16 variant."""
    unet = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "sample_size": 768,
    }
    text = CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
        projection_dim=512,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=_random(lambda: AutoencoderKL(**vae)),
        text_encoder=_random(lambda: CLIPTextModel(text)),
        tokenizer=_clip_tokenizer(),
        unet=_random(lambda: UNet2DConditionModel(sample_size=64, **unet)),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, variant="fp16")
    return folder


def link_predicting(prediction_type: str, saved: Path, folder: Path) -> Path:
    """The same weights, which are linked, as a model that predicts something else (2.1 of 768 pixels: v)."""
    shutil.copytree(saved, folder, copy_function=os.link)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"prediction_type": prediction_type}
    file.unlink()  # it is `saved`'s, too
    file.write_text(json.dumps(config))
    return folder


def save_clip(architecture: str, path: Path) -> Path:
    """Weights of one of open_clip's architectures, in half precision."""
    model = _random(lambda: open_clip.CLIP(**open_clip.get_model_config(architecture)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def _random(make: Callable[[], nn.Module]) -> nn.Module:
    """The module in half precision, initialised as torch would and without its minutes of work for large ones."""
    with torch.device("meta"):
        module = make()
    module = module.half().to_empty(device="cpu")
    rng = torch.Generator().manual_seed(0)
    # One pool of numbers for all: distinct layers begin at distinct places.
    pool, start = torch.randn(2**24, generator=rng).half(), 0
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.dim() < 2:
                tensor.fill_(1 if name.endswith("weight") or "var" in name else 0)
                continue
            start = (start + 7919) % 2**20
            chosen = pool[start : start + min(tensor.numel(), len(pool) - 2**20)]
            repeats = math.ceil(tensor.numel() / len(chosen))
            scaled = chosen / math.sqrt(tensor[0].numel())
            tensor.copy_(scaled.repeat(repeats)[: tensor.numel()].view_as(tensor))
    return module


def _clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own, from the vocabulary that open_clip ships."""
    vocabulary = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")[1 : N_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token="!", model_max_length=77)
