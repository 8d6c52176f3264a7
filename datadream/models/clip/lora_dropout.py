"""LoRA dropout of a CLIP in training (loralib): y = W x + scale * B A dropout(x), with W as it was pretrained.

q, k and v of a layer see the same dropped inputs; the output layer has its own. The frozen product sees all inputs, so
LoRA cannot be merged into W; what that costs is two thin products, and what it saves is the gradient of a merged W.

Every image of a batch has its own seed, and every token of all prompts its place in one sample, so that nothing
depends on how many workers and micro-batches share them. What prompts begin with is computed once for all of them, and
so is dropped alike for all of them: each prompt's features have the distribution that they have in the authors' code,
but the classes of a step are not independent in the tokens that they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datadream.hashing import derive_seed
from datadream.models.clip.low_rank import LowRank


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
    """Numbers of the images that are encoded, among those of all workers."""

    def of_images(self, numbers: Sequence[int]) -> LoraDropout:
        """The same step's dropout, of those images."""
        return replace(self, images=numbers)

    def in_image_blocks(self, tower: Transformer, x: Tensor) -> list[BlockLora]:
        """For each block of an image tower that runs on tokens x [n images, tokens, width]."""
        if len(self.images) != len(x):
            raise ValueError(f"dropout is for {len(self.images)} images, not for the {len(x)} that are encoded.")
        layers = [_layers(block.attn) for block in tower.resblocks]
        kept = torch.empty(len(x), sum(map(len, layers)), *x.shape[1:], dtype=torch.bool, device=x.device)
        # A generator for each image, so that its masks do not depend on which worker or micro-batch holds it.
        for number, own in zip(self.images, kept, strict=True):
            rng = torch.Generator(x.device).manual_seed(derive_seed(self.seed, "image", number))
            own.bernoulli_(1 - self.rate, generator=rng)
        return self._blocks(layers, kept.unbind(1))

    def in_text_blocks(self, tower: Transformer, x: Tensor, n_all: int, rows: Tensor) -> list[BlockLora]:
        """For each block of a text tower run on packed tokens x [n, width]: `rows` [n] of all workers' `n_all`."""
        layers = [_layers(block.attn) for block in tower.resblocks]
        kept = torch.empty(sum(map(len, layers)), n_all, x.shape[1], dtype=torch.bool, device=x.device)
        # Every worker samples the masks of all tokens and takes its rows: the same for any number of workers.
        rng = torch.Generator(x.device).manual_seed(derive_seed(self.seed, "text"))
        kept.bernoulli_(1 - self.rate, generator=rng)
        return self._blocks(layers, kept if len(rows) == n_all else kept[:, rows])

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
