"""Tell a GPU once what it is to do at every step.

A small step is thousands of kernels, and Python needs longer to launch them than a fast GPU to run them. A CUDA graph
launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]
Shapes = tuple[torch.Size | None, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor | None]
    """What the graph reads."""
    outputs: Sequence[Tensor]
    """What it writes."""


class Recorded:
    """A function of tensors, which a GPU repeats by itself from the second call with the same shapes on.

    What the function reads beside its arguments must stay where it is and be changed in place. What it does must
    depend on its arguments' shapes alone: it may neither look at a value nor wait for the device.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._records: dict[Shapes, _Record | None] = {}
        self._pool: tuple[int, int] | None = None

    def __call__(self, first: Tensor, *others: Tensor | None) -> Sequence[Tensor]:
        """What the function returns, in tensors that are the caller's; on CPUs it is just called."""
        inputs = (first, *others)
        shapes = tuple(None if tensor is None else tensor.shape for tensor in inputs)
        # The first call starts libraries and compiles, which a recording must not.
        if not first.is_cuda or shapes not in self._records:
            self._records[shapes] = None
            return self._function(*inputs)
        record = self._records[shapes]
        if record is None:
            copies = [None if tensor is None else tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            # thread_local: NCCL's watchdog may ask CUDA for something meanwhile. One pool for all shapes: what lives
            # longer than a replay, inputs and copies of outputs, is not in it.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self._function(*copies)
            self._pool = graph.pool()
            record = self._records[shapes] = _Record(graph, copies, outputs)
        # Copied in and out: a graph reads and writes the addresses that it was recorded with, at every replay.
        for held, tensor in zip(record.inputs, inputs, strict=True):
            if held is not None:
                held.copy_(tensor)
        record.graph.replay()
        return [tensor.clone() for tensor in record.outputs]
