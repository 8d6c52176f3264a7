"""CLIP through open_clip, and LoRA on the attention of both of its towers.

open_clip's attention is nn.MultiheadAttention, which packs q, k and v into one weight and never calls its output
layer. LoRA is therefore a parametrization of the weights: the forward pass stays PyTorch's own, each projection has
its own A and B as in the authors' code, and merging leaves a plain open_clip model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datadream.config import nearest
from datadream.models.source import resolve

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
WEIGHTS = (".safetensors", ".bin", ".pth")
"""Suffixes of the weights that open_clip finds in a folder."""
PACKED = ("q", "k", "v")
"""Projections in the order in which nn.MultiheadAttention stacks them."""


@dataclass(frozen=True, slots=True)
class ClipModel:
    """A CLIP with what it expects of its inputs."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    """open_clip's evaluation transform: photo -> normalised float [3, size, size]."""
    tokenizer: Callable[[Sequence[str]], Tensor]
    """Prompts -> token ids [n, context]."""

    @property
    def size(self) -> int:
        """Side of the square input, in pixels."""
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.model.visual.preprocess_cfg["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.model.visual.preprocess_cfg["std"])


def load_clip(model: str, pretrained: str | None, device: torch.device | str) -> ClipModel:
    """Load a CLIP in evaluation mode and fp32.

    A checkpoint folder holds its own weights, so `pretrained` is then not read.
    Raises FileNotFoundError or ValueError saying what is wrong with the ids and what would be right.
    """
    check_clip(model, pretrained)
    name = _open_clip_name(model)
    try:
        clip, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=None if _is_folder(name) else pretrained, device=device
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError) as error:
        weights = "" if _is_folder(name) else f" with classify.pretrained {pretrained!r}"
        raise ValueError(f"classify.model {model!r}{weights} cannot be loaded: {error}") from error
    return ClipModel(clip.eval(), preprocess, tokenizer)


def check_clip(model: str, pretrained: str | None) -> None:
    """Check a model's ids without loading weights; whether a Hub id exists is only known when it is loaded.

    Raises FileNotFoundError for a missing folder or file, ValueError for an unknown architecture or tag.
    """
    name = _open_clip_name(model)
    if name.startswith(LOCAL_DIR):
        _check_folder(model, Path(name.removeprefix(LOCAL_DIR)))
    elif name.startswith(HF_HUB):
        if name == HF_HUB:
            raise ValueError(f"classify.model is {model!r}: the Hub id is missing. Use hf-hub:<owner>/<model>.")
    else:
        _check_architecture(model, pretrained)


def input_size(model: str) -> int:
    """Side in pixels of the images that a model takes, without loading weights."""
    name = _open_clip_name(model)
    config = open_clip.get_model_config(name if _is_folder(name) else name.replace("/", "-"))
    size = config["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


@torch.no_grad()
def encode_prompts(model: nn.Module, tokens: Tensor) -> Tensor:
    """Unit text features [n, D] of token ids [n, context]."""
    return model.encode_text(tokens, normalize=True).float()


@torch.no_grad()
def encode_images(model: nn.Module, images: Tensor) -> Tensor:
    """Unit image features [n, D] of preprocessed images [n, 3, size, size]."""
    return model.encode_image(images, normalize=True).float()


class LowRank(nn.Module):
    """weight -> weight + scale * B A, for chosen blocks of rows of a stacked weight."""

    def __init__(
        self, weight: Tensor, n_blocks: int, chosen: Sequence[int], rank: int, scale: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = weight.shape[0] // n_blocks, weight.shape[1]
        # Kaiming's uniform bound for a fan-in of `columns` and a slope of sqrt(5), as in loralib; drawn on the CPU so
        # that every device starts from the same numbers.
        bound = 1 / math.sqrt(columns)
        down = torch.empty(len(chosen), rank, columns).uniform_(-bound, bound, generator=rng)
        self.n_blocks, self.scale = n_blocks, scale
        self.A = nn.Parameter(down.to(weight.device))
        self.B = nn.Parameter(torch.zeros(len(chosen), rows, rank, device=weight.device))
        self.register_buffer("chosen", torch.tensor(chosen, device=weight.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        blocks = weight.view(self.n_blocks, -1, weight.shape[1])
        update = torch.bmm(self.B, self.A).to(weight.dtype)
        return blocks.index_add(0, self.chosen, update, alpha=self.scale).view_as(weight)


def add_lora(
    model: nn.Module, *, rank: int, alpha: float, projections: Sequence[str], seed: int, name: str = "this CLIP"
) -> None:
    """Freeze a CLIP and add trainable LoRA, the identity at first, to the attention of both towers, in place.

    Raises ValueError when no layer of the model called `name` is an nn.MultiheadAttention, or no projection is named.
    """
    layers = list(_attention_layers(model))
    if not layers:
        raise ValueError(
            f"classify.model {name!r} has no nn.MultiheadAttention that LoRA could adapt. "
            "Use a ViT of OpenAI's kind, such as ViT-B-16-quickgelu."
        )
    if not projections:
        raise ValueError(
            f"classify.projections is empty: nothing would be trained. Name some of {', '.join(PACKED)}, out."
        )
    model.requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    packed = [PACKED.index(projection) for projection in PACKED if projection in projections]
    for _, layer in layers:
        if packed:
            weight = layer.in_proj_weight
            parametrize.register_parametrization(
                layer, "in_proj_weight", LowRank(weight, len(PACKED), packed, rank, alpha / rank, rng)
            )
        if "out" in projections:
            weight = layer.out_proj.weight
            parametrize.register_parametrization(
                layer.out_proj, "weight", LowRank(weight, 1, [0], rank, alpha / rank, rng)
            )


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, always in the same order."""
    return [parameter for _, update in _updates(model) for parameter in (update.A, update.B)]


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """CPU copies of the LoRA weights as <layer>.<projection>.lora_A [rank, in] and lora_B [out, rank]."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _named_tensors(model)}


@torch.no_grad()
def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy LoRA weights into a model that has LoRA; raises ValueError when they belong to another one."""
    own = dict(_named_tensors(model))
    if state.keys() != own.keys():
        different = sorted(state.keys() ^ own.keys())
        raise ValueError(
            f"LoRA weights do not fit the model: {different[0]!r} is in only one of the two. "
            "Add LoRA with the same projections."
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


def merge_lora(model: nn.Module) -> None:
    """Fold LoRA into the weights, in place; the model is a plain open_clip model again."""
    for _, owner, weight in list(_adapted(model)):
        parametrize.remove_parametrizations(owner, weight, leave_parametrized=True)


def remove_lora(model: nn.Module) -> None:
    """Take LoRA off again, in place; the weights are what they were before, to the bit."""
    for _, owner, weight in list(_adapted(model)):
        parametrize.remove_parametrizations(owner, weight, leave_parametrized=False)


def _attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.MultiheadAttention]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim:
            yield name, module


def _adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Weights that have LoRA: the attention layer's name, the module that owns the weight, and the weight's name."""
    for name, layer in _attention_layers(model):
        for owner, weight in ((layer, "in_proj_weight"), (layer.out_proj, "weight")):
            if parametrize.is_parametrized(owner, weight):
                yield name, owner, weight


def _updates(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    for name, owner, weight in _adapted(model):
        yield name, owner.parametrizations[weight][0]


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, update in _updates(model):
        for row, block in enumerate(update.chosen.tolist()):
            projection = PACKED[block] if update.n_blocks == len(PACKED) else "out"
            yield f"{name}.{projection}.lora_A", update.A[row]
            yield f"{name}.{projection}.lora_B", update.B[row]


def _open_clip_name(model: str) -> str:
    path = resolve(model)
    return path if path == model else LOCAL_DIR + path


def _is_folder(name: str) -> bool:
    return name.startswith((LOCAL_DIR, HF_HUB))


def _check_folder(model: str, folder: Path) -> None:
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"classify.model is {model!r}: {str(config)!r} does not exist. Use a folder that open_clip saved."
        )
    try:
        usable = "model_cfg" in json.loads(config.read_text())
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"classify.model is {model!r}: {str(config)!r} is no open_clip config with a model_cfg. "
            "Save the folder again."
        )
    if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        raise FileNotFoundError(
            f"classify.model is {model!r}: folder {str(folder)!r} holds no weights. Add open_clip_model.safetensors."
        )


def _check_architecture(model: str, pretrained: str | None) -> None:
    known = open_clip.list_models()
    architecture = model.replace("/", "-")
    if architecture not in known:
        folder = f" For that folder use {LOCAL_DIR}{model}." if os.path.isdir(model) else ""
        hint = folder or f" {nearest(architecture, known)}".rstrip()
        raise ValueError(
            f"classify.model is {model!r}: no architecture of open_clip.{hint} "
            f"Checkpoint folders are {HF_HUB}<id>, {LOCAL_DIR}<folder> or package://<module>/<folder>."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained is None:
        raise ValueError(
            f"classify.pretrained is unset, and {model!r} is only an architecture. "
            f"Use a file of weights, or a tag: {', '.join(tags)}."
        )
    if not open_clip.get_pretrained_cfg(architecture, pretrained) and not os.path.isfile(pretrained):
        hint = nearest(pretrained, tags)
        raise ValueError(
            f"classify.pretrained is {pretrained!r}: neither a file nor weights of {model!r}. {hint}".rstrip()
        )
