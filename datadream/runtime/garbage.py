"""Python's search for garbage, left out where it finds none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """For the length of a block that imports libraries and loads models: what they make stays.

    torch, diffusers and open_clip make hundreds of thousands of objects, which Python otherwise looks through again
    and again: imported so, they take 4.7 to 5.3 s in place of 5.9 to 6.3 s (benchmarks/RESULTS.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
