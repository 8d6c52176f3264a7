"""Memory that a training step of Stable Diffusion 2.1's shapes takes, for C adapters side by side; no GPU needed.

    python -m benchmarks.memory

Runs the step on tensors without data and follows every allocation: weights in bf16, adapters and
optimiser in fp32, 512 pixels, batch 8, fused attention. Allocator waste, the CUDA context and the workspaces of
kernels come on top. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import weakref
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.compare import machine
from benchmarks.shapes import TEXT, TOKENS, UNET
from datadream.models.diffusion.attention import SharedPromptAttention
from datadream.models.diffusion.lora import StackedLora

BATCH, RANK = 8, 16  # the paper's


def sd21(n_adapters: int) -> tuple[SimpleNamespace, StackedLora]:
    """UNet and text encoder of the published configs, with adapters."""
    torch.set_default_dtype(torch.bfloat16)
    pipeline = SimpleNamespace(unet=UNet2DConditionModel(**UNET), text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)))
    torch.set_default_dtype(torch.float32)
    for module in (pipeline.unet, pipeline.text_encoder):
        module.requires_grad_(False)
    pipeline.unet.set_attn_processor(SharedPromptAttention())
    return pipeline, StackedLora(pipeline, n_adapters, RANK, text_encoder=True)


class Allocations(TorchDispatchMode):
    """Bytes of all storages that operations return, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._living:
            self._living.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.follow(leaf)
        return out


def peak_gib(n_adapters: int) -> float:
    """Most that is alive at once during an optimiser step, in GiB."""
    with FakeTensorMode(), Allocations() as allocations:
        pipeline, lora = sd21(n_adapters)
        optimizer = torch.optim.AdamW([lora.weights], fused=True)
        for _ in range(2):  # the second has the optimiser's state from the start
            allocations.peak = 0
            _step(pipeline, lora, optimizer, n_adapters)
    return allocations.peak / 2**30


def _step(pipeline: SimpleNamespace, lora: StackedLora, optimizer: torch.optim.Optimizer, n_adapters: int) -> None:
    noisy = torch.randn(n_adapters * BATCH, 4, 64, 64, dtype=torch.bfloat16)
    times = torch.randint(1000, (n_adapters * BATCH,))
    prompts = torch.randint(TEXT["hidden_size"], (n_adapters, TOKENS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = pipeline.text_encoder(prompts)[0]
        predicted = pipeline.unet(noisy, times, encoded, return_dict=False)[0]
    loss = predicted.float().square().mean()
    gradients = torch.autograd.grad(loss, lora.parts)
    lora.weights.grad = torch.cat([part.flatten(1) for part in gradients], dim=1)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    arguments = parser.parse_args()
    peaks = {str(count): round(peak_gib(count), 2) for count in arguments.adapters}
    print(json.dumps({"benchmark": "memory", "machine": machine(), "peak_gib": peaks}))


if __name__ == "__main__":
    main()
