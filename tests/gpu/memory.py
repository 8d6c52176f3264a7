"""A device whose memory ends early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch

T = TypeVar("T")


@contextmanager
def memory_for(device: torch.device, fits: Callable[[], T], owner: Any, method: str, most: int) -> Iterator[T]:
    """In this block there is memory for what `fits` does, whose result it gives, and for little more.

    A CPU's memory has no such end: there `method` of `owner` raises what torch would, when its first argument has more
    than `most` elements.
    """
    if device.type == "cpu":
        done, work = fits(), getattr(owner, method)

        def with_little_memory(first: Any, *others: Any) -> Any:
            if len(first) > most:
                raise torch.OutOfMemoryError
            return work(first, *others)

        with patch.object(owner, method, with_little_memory):
            yield done
        return
    fits()  # libraries take their workspaces now
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    done = fits()
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    limit = peak + 0.5 * (peak - before)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory)
    try:
        yield done
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
