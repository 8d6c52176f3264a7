"""What of a CLIP learns: LoRA on the attention of both towers, or LoRA on the text tower and all of the image tower,
or words in front of the classes' names alone.

open_clip's attention is nn.MultiheadAttention, which packs q, k and v into one weight and never calls its output
layer. LoRA is therefore a parametrization of the weights: the forward pass stays PyTorch's own, each projection has
its own A and B as in the authors' code, and merging leaves a plain open_clip model. Adding a low-rank path to the
activations instead was measured on CPUs: 14 % faster in a packed projection of width 512 and rank 16, 3 % of a layer,
and slower in narrow ones. Dropout needs that path (`lora_dropout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datadream.config import TRAINED_SETTINGS, ClassifyConfig, ImageTower
from datadream.models.clip.context import LearnedRows
from datadream.models.clip.image_tower import runs_image_tower
from datadream.models.clip.load import model_config, without_weights
from datadream.models.clip.low_rank import LowRank
from datadream.models.clip.text_tower import runs_text_tower

# Projections in the order in which nn.MultiheadAttention stacks them.
PACKED = ("q", "k", "v")
# open_clip's name of the image tower, and what its layers' names begin with.
IMAGE_TOWER, IN_IMAGE_TOWER = "visual", "visual."
CONTEXT = "context"
"""The learned words' name among the trained weights."""
LORA_ENDINGS = (".lora_A", ".lora_B")
"""Of the names of LoRA's."""


def check_trainable(config: ClassifyConfig) -> None:
    """Raises ValueError, as the trained settings would, but without loading weights."""
    if config.context or not set(config.settings) & set(TRAINED_SETTINGS):
        return
    vision = model_config(config.model)["vision_cfg"]
    # In open_clip's configs several numbers of layers are a ResNet, and timm's attention is not nn.MultiheadAttention.
    takes_lora = isinstance(vision.get("layers", 12), int) and not vision.get("timm_model_name")
    full = _learns_fully(config.model, config.image_tower, config.projections, takes_lora)
    if config.lora_dropout and config.projections:
        model = without_weights(config.model)
        names = [name for name, _ in _attention_layers(model) if not (full and name.startswith(IN_IMAGE_TOWER))]
        check_dropout(model, config.model, names)


def check_dropout(model: nn.Module, name: str, layers: Sequence[str] | None = None) -> None:
    """Raises ValueError when a model has LoRA where dropout is not possible: in `layers`, or as `make_trainable` made.

    Dropout needs LoRA beside its weight, so blocks that are run by us and not by open_clip.
    """
    if layers is None:
        layers = [layer for layer, *_ in _parametrized(model) if layer != CONTEXT]
    for in_images, tower, possible in (
        (True, "image", runs_image_tower(model)),
        (False, "text", runs_text_tower(model)),
    ):
        if not possible and any(layer.startswith(IN_IMAGE_TOWER) == in_images for layer in layers):
            raise ValueError(
                f"classify.lora_dropout cannot be applied in the {tower} tower of {name!r}, which is not of OpenAI's "
                "kind. Use classify.lora_dropout=0."
            )


def _learns_fully(name: str, image_tower: ImageTower, projections: Sequence[str], takes_lora: bool) -> bool:
    """Whether all of the image tower learns; raises ValueError when it cannot learn as wanted, or nothing would."""
    if image_tower == "lora" and not takes_lora:
        raise ValueError(
            f"classify.image_tower is 'lora', but the image tower of {name!r} has no nn.MultiheadAttention that LoRA "
            "could adapt. Use classify.image_tower=full, or a ViT of OpenAI's kind, such as ViT-B-16-quickgelu."
        )
    full = image_tower == "full" or not takes_lora
    if not projections and not full:
        raise ValueError(
            f"classify.projections is empty: nothing would be trained. Name some of {', '.join(PACKED)}, out."
        )
    return full


def make_trainable(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    projections: Sequence[str],
    seed: int,
    image_tower: ImageTower = "auto",
    context: Sequence[int] = (),
    name: str = "this CLIP",
) -> None:
    """Freeze a CLIP and make part of it trainable, in place: LoRA, the identity at first, or all of the image tower;
    or, where `context` has ids of tokens, the vectors of these alone (`with_context`).

    The text tower gets LoRA where its layers are nn.MultiheadAttention, and stays frozen where they are not.
    Normalisation by batch statistics (RN50) keeps those it was pretrained with, for the model stays in evaluation
    mode: the few shots would not give better ones. Its scales and shifts learn.
    Raises ValueError when LoRA is wanted and no layer of the model called `name` could take it, or when nothing would
    be trained.
    """
    rng = torch.Generator().manual_seed(seed)
    if context:
        model.requires_grad_(False)
        rows = LearnedRows(model.token_embedding.weight, context, rng)
        parametrize.register_parametrization(model.token_embedding, "weight", rows)
        return
    layers = list(_attention_layers(model))
    takes_lora = any(path.startswith(IN_IMAGE_TOWER) for path, _ in layers)
    full = _learns_fully(name, image_tower, projections, takes_lora)
    model.requires_grad_(False)
    if full:
        visual = model.get_submodule(IMAGE_TOWER).requires_grad_(True)
        # Kept with the model for `restore`, and to know what learns.
        visual.untrained = {
            name: weight.detach().cpu().clone() for name, weight in visual.named_parameters(prefix=IMAGE_TOWER)
        }
    packed = [PACKED.index(projection) for projection in PACKED if projection in projections]
    # One generator over all layers: their order decides the numbers, so it must stay the model's own.
    for path, layer in layers:
        if full and path.startswith(IN_IMAGE_TOWER):
            continue
        if packed:
            update = LowRank(layer.in_proj_weight, len(PACKED), packed, rank, alpha / rank, rng)
            parametrize.register_parametrization(layer, "in_proj_weight", update)
        if "out" in projections:
            update = LowRank(layer.out_proj.weight, 1, [0], rank, alpha / rank, rng)
            parametrize.register_parametrization(layer.out_proj, "weight", update)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What `make_trainable` left to learn, always in the same order."""
    owners = _parametrized(model)
    parts = [part for _, owner, weight in owners for part in owner.parametrizations[weight][0].parameters()]
    return parts + [parameter for _, parameter in _full(model)]


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """CPU copies of what learns: LoRA as <layer>.<projection>.lora_A [rank, in] and lora_B [out, rank]; weights of a
    fully trained image tower under open_clip's names; learned words as `context` [n, width]."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _named_tensors(model)}


@torch.no_grad()
def load_trainable_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy weights into a model that `make_trainable` prepared; raises ValueError when they belong to another one."""
    own = dict(_named_tensors(model))
    if state.keys() != own.keys():
        different = sorted(state.keys() ^ own.keys())
        raise ValueError(
            f"trained weights do not fit the model: {different[0]!r} is in only one of the two. "
            "Make the same of it trainable."
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


def merge_lora(model: nn.Module) -> None:
    """Keep what was learnt, LoRA folded into the weights, in place; the model is a plain open_clip model again."""
    _unparametrize(model, keep=True)
    model.visual.untrained = {}


@torch.no_grad()
def restore(model: nn.Module) -> None:
    """Make a CLIP again what it was before `make_trainable`, in place and to the bit."""
    _unparametrize(model, keep=False)
    for name, parameter in _full(model):
        parameter.copy_(model.visual.untrained[name])
    model.visual.untrained = {}


def _unparametrize(model: nn.Module, keep: bool) -> None:
    # A list first: removing a parametrization changes the modules that _parametrized walks over.
    for _, owner, weight in list(_parametrized(model)):
        parametrize.remove_parametrizations(owner, weight, leave_parametrized=keep)


def _attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.MultiheadAttention]]:
    for name, module in model.named_modules():
        # CoCa's decoder writes captions, and no feature depends on it.
        if name.startswith("text_decoder."):
            continue
        # With other widths of keys or values PyTorch keeps three weights, and none of them is stacked.
        if isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim:
            yield name, module


def _parametrized(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Weights that have LoRA: the attention layer's name, the module that owns the weight, and the weight's name; or
    CONTEXT and the table of tokens that has learned words, if they are what learns."""
    for name, layer in _attention_layers(model):
        for owner, weight in ((layer, "in_proj_weight"), (layer.out_proj, "weight")):
            if parametrize.is_parametrized(owner, weight):
                yield name, owner, weight
    table = getattr(model, "token_embedding", None)
    if table is not None and parametrize.is_parametrized(table, "weight"):
        yield CONTEXT, table, "weight"


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, owner, weight in _parametrized(model):
        update = owner.parametrizations[weight][0]
        if name == CONTEXT:
            yield CONTEXT, update.vectors
            continue
        for row, block in enumerate(update.blocks):
            projection = PACKED[block] if update.n_blocks == len(PACKED) else "out"
            yield f"{name}.{projection}.lora_A", update.A[row]
            yield f"{name}.{projection}.lora_B", update.B[row]
    yield from _full(model)


def _full(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All weights of an image tower that learns fully, by open_clip's names."""
    if getattr(model.visual, "untrained", None):
        yield from model.visual.named_parameters(prefix=IMAGE_TOWER)
