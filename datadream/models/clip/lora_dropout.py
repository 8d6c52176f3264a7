"""LoRA dropout of a CLIP in training (loralib): y = W x + scale * B A dropout(x), with W as it was pretrained.

q, k and v of a layer see the same dropped inputs; the output layer has its own. The frozen product sees all inputs, so
LoRA cannot be merged into W; what that costs is two thin products, and what it saves is the gradient of a merged W.

Every image of a batch has its own seed, and every token of all prompts its place in one draw, so that nothing depends
on how many ranks and micro-batches share them. What prompts begin with is computed once for all of them, and so is
dropped alike for all of them: each prompt's features have the law that they have in the authors' code, but the classes
of a step are not independent in the tokens that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datadream.models.clip.low_rank import LowRank
from datadream.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class DroppedLora:
    """The LoRA of one linear layer beside its frozen weight, and which of its inputs it sees."""

    weight: Tensor
    """Frozen [rows, columns]."""
    update: LowRank
    kept: Tensor
    """Bool, shaped as the inputs."""
    rate: float

    def factors(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of what LoRA adds for inputs x; see LowRank.factors."""
        return self.update.factors(x * self.kept, 1 / (1 - self.rate))

    def picked(self, pick: Callable[[Tensor], Tensor]) -> DroppedLora:
        """For some of the inputs."""
        return replace(self, kept=pick(self.kept))


@dataclass(frozen=True, slots=True)
class BlockLora:
    """The layers of a transformer block whose LoRA is not in their weights but beside them."""

    in_proj: DroppedLora | None = None
    out_proj: DroppedLora | None = None


MERGED = BlockLora()
"""No dropout: LoRA is in the weights."""


@dataclass(frozen=True, slots=True)
class LoraDropout:
    """What LoRA does not see in one optimiser step."""

    rate: float
    """Share of the inputs, in (0, 1)."""
    seed: int
    """Of the step."""
    images: Sequence[int] = ()
    """Numbers of the images that are encoded, among those of all ranks."""

    def of_images(self, numbers: Sequence[int]) -> LoraDropout:
        """The same step's dropout, of those images."""
        return replace(self, images=numbers)

    def in_image_blocks(self, tower: Transformer, x: Tensor) -> list[BlockLora]:
        """For each block of an image tower that runs on tokens x [n images, tokens, width]."""
        if len(self.images) != len(x):
            raise ValueError(f"dropout is for {len(self.images)} images, not for the {len(x)} that are encoded.")
        layers = [_layers(block.attn) for block in tower.resblocks]
        kept = torch.empty(len(x), _count(layers), *x.shape[1:], dtype=torch.bool, device=x.device)
        for number, own in zip(self.images, kept, strict=True):
            self._draw(own, "image", number)
        return self._blocks(layers, kept.unbind(1))

    def in_text_blocks(self, tower: Transformer, x: Tensor, n_all: int, rows: Tensor) -> list[BlockLora]:
        """For each block of a text tower that runs on packed tokens x [n, width]: `rows` [n] of the `n_all` of all
        ranks."""
        layers = [_layers(block.attn) for block in tower.resblocks]
        kept = torch.empty(_count(layers), n_all, x.shape[1], dtype=torch.bool, device=x.device)
        self._draw(kept, "text")
        return self._blocks(layers, kept if len(rows) == n_all else kept[:, rows])

    def _draw(self, kept: Tensor, tower: str, *path: int) -> None:
        rng = torch.Generator(kept.device).manual_seed(derive_seed(self.seed, tower, *path))
        kept.bernoulli_(1 - self.rate, generator=rng)

    def _blocks(self, layers: Sequence[dict[str, tuple[Tensor, LowRank]]], kept: Sequence[Tensor]) -> list[BlockLora]:
        """`kept` has one tensor for each layer with LoRA, in their order."""
        masks = iter(kept)
        return [
            BlockLora(**{name: DroppedLora(*lora, next(masks), self.rate) for name, lora in own.items()})
            for own in layers
        ]


def _layers(attention: nn.MultiheadAttention) -> dict[str, tuple[Tensor, LowRank]]:
    """Frozen weight and update of the layers of an attention that have LoRA, as `BlockLora` names them."""
    owners = {"in_proj": (attention, "in_proj_weight"), "out_proj": (attention.out_proj, "weight")}
    return {
        name: (owner.parametrizations[weight].original, owner.parametrizations[weight][0])
        for name, (owner, weight) in owners.items()
        if parametrize.is_parametrized(owner, weight)
    }


def _count(layers: Sequence[dict[str, tuple[Tensor, LowRank]]]) -> int:
    return sum(map(len, layers))
