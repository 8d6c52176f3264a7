"""What a worker does to its process before it computes: threads, device and number types."""

from __future__ import annotations

import math
import re

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


_ALLOCATION_WORDS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""What full memory is called by the libraries that allocate beside torch: a bare RuntimeError."""


def free_bytes(device: torch.device) -> float:
    """What nobody has of a GPU's memory, this process's own reserves not counted; a CPU's is not limited here."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def use_threads(threads: int) -> None:
    """CPU threads of this process; the same number gives the same bits."""
    torch.set_num_threads(threads)


def worker_device(use_gpu: bool) -> torch.device:
    """The worker's device; raises RuntimeError, a host's fault, where Ray promises a GPU that torch cannot use.

    Going on without it would take days where hours were planned.
    """
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise RuntimeError(
            f"No CUDA GPUs can be used here though Ray counts one: torch {torch.__version__} is built for {build}. "
            "Install a driver and a torch that fit, or use cluster.device=cpu."
        )
    return torch.device("cuda")


def shared_worker_device(use_gpu: bool) -> torch.device:
    """The device of a Ray Train worker that has a process group with the others.

    For their sake Ray shows it all GPUs of its node, and says which one is its own.
    """
    if worker_device(use_gpu).type == "cpu":
        return torch.device("cpu")
    import ray.train.torch

    device = ray.train.torch.get_device()
    torch.cuda.set_device(device)
    return device


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; a GPU goes on with what it has been told to do while the copy is made.

    From pageable memory CUDA would copy after all that work, and the CPU wait for it.
    """
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor's copy on the CPU, which a GPU makes after all that it has been told to do so far."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy, self._made = tensor, None
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._made = torch.cuda.Event()
            self._made.record()

    def wait(self) -> torch.Tensor:
        """The copy, once it is made; not for what the GPU has been told to do since."""
        if self._made is not None:
            self._made.synchronize()
        return self._copy


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether less work at once could succeed where this error ended it."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _ALLOCATION_WORDS)


def shortage(error: RuntimeError) -> str:
    """How much memory was asked for and there is, in words after a sentence; empty where torch does not say."""
    found = re.search(r"Tried to allocate ([\d.]+ \w+).*total capacity of ([\d.]+ \w+)", str(error))
    return f" It asked for {found[1]} more, of {found[2]} that the GPU has." if found else ""


def dtype_of(precision: str, device: torch.device, on_cuda: torch.dtype) -> torch.dtype:
    """Number type of a `precision` knob; auto is `on_cuda` on CUDA and fp32 elsewhere."""
    if precision == "auto":
        return on_cuda if device.type == "cuda" else torch.float32
    return DTYPES[precision]
