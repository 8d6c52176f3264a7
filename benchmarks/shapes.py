"""Models that benchmarks run: the embedded backbone, or random weights in the shapes that the paper uses.

`sd21` is Stable Diffusion 2.1-base and CLIP ViT-B/16 as their published configs have them, with weights made on the
device that uses them: nothing is downloaded, and the work of a step does not depend on what weights hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from datadream import recipes
from datadream.models.clip.load import ClipModel
from datadream.models.clip.text_tower import TextTower
from datadream.models.diffusion.pipeline import load_pipeline

MODEL = recipes.TINY["diffusion.model"]
MEAN = STD = (0.5, 0.5, 0.5)
TOKENS = 77
"""CLIP's context."""

UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """A generator and a classifier that belong together."""

    resolution: int
    """Side of the generator's images, in pixels."""
    embedded: bool
    """Whether the generator is the package's own, with trained weights."""
    clip: Mapping[str, Any]
    """open_clip's config of the classifier, whose weights are random."""

    def pipeline(self, device: torch.device | str, dtype: torch.dtype) -> StableDiffusionPipeline:
        """The frozen generator; always the same weights on one kind of device."""
        if self.embedded:
            return load_pipeline(MODEL, None, torch.device(device), dtype)
        return _random_pipeline(torch.device(device), dtype)

    def classifier(self, device: torch.device | str) -> ClipModel:
        """The CLIP in fp32, with open_clip's own tokenizer."""
        return random_clip(self.clip, device)


SHAPES = {
    "tiny": Shapes(
        resolution=32,
        embedded=True,
        clip={
            "embed_dim": 64,
            "vision_cfg": {"image_size": 32, "layers": 12, "width": 96, "head_width": 32, "patch_size": 8},
            "text_cfg": {"context_length": TOKENS, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 12},
        },
    ),
    "sd21": Shapes(
        resolution=512,
        embedded=False,
        clip={
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
            "text_cfg": {"context_length": TOKENS, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        },
    ),
}


def add_arguments(parser: argparse.ArgumentParser, device: str = "cpu", shapes: str = "tiny") -> None:
    """`--device` and `--shapes`, which all benchmarks of models take."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--shapes", choices=list(SHAPES), default=shapes)


def random_clip(config: Mapping[str, Any], device: torch.device | str = "cpu") -> ClipModel:
    """A CLIP of OpenAI's kind."""
    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(**config, quick_gelu=True).eval()
    size = config["vision_cfg"]["image_size"]
    transform = open_clip.image_transform(size, is_train=False, mean=MEAN, std=STD)
    return ClipModel(model, transform, open_clip.get_tokenizer("ViT-B-16"), TextTower(model))


def weight_bytes(*modules: nn.Module) -> int:
    """Of all parameters and buffers."""
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))


def _random_pipeline(device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    tokenizer = _tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    # Made where they are used: copying 5 GB to a GPU takes longer than drawing them there.
    with device:
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT, hidden_act="gelu", **ends))
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False).eval().to(dtype)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokenizer() -> CLIPTokenizer:
    """Of single bytes: a prompt is padded to the same 77 tokens whatever the vocabulary is."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=TOKENS)
