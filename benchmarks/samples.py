"""Readings taken once a second while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Samples(Generic[T]):
    """``with Samples(read) as samples: ...`` keeps what `read` returned each second in ``samples.taken``."""

    def __init__(self, read: Callable[[], T]) -> None:
        self.taken: list[T] = []
        self._read = read
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._ended.wait(1.0):
            self.taken.append(self._read())

    def __enter__(self) -> Samples[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def mib(n_bytes: float) -> float:
    return n_bytes / 2**20
