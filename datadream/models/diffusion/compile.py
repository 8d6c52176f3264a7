"""torch.compile for the attention blocks of a UNet.

Without its CUDA graphs (`mode="reduce-overhead"`): these refuse blocks that are compiled one by one and feed each
other (pytorch issue 152887), and would write the next step over prompts that are kept from the first. Denoising a
batch of images needs none, for its kernels take longer than their launches; a training step has `Recorded`.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

MOST_GRAPHS = 64
"""Graphs that torch may keep of the code that all blocks share. Its own limit is 8; what comes after runs uncompiled,
with a line in a worker's log and no error. The first batch size alone takes 8 of Stable Diffusion 2.1's UNet: four
levels, once with prompts that are projected and once with kept ones. A worker meets a handful of sizes: those that it
measures, the rest of a chunk, and halves when memory is short."""


def compile_blocks(unet: UNet2DConditionModel, backend: str = "inductor") -> None:
    """Compile the blocks that a UNet repeats, once for all adapters."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    unet.compile_repeated_blocks(backend=backend)
