"""Progress of a stage: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

from datadream.run.layout import progress_file
from datadream.run.store import RunStore

log = logging.getLogger("datadream")

Facts = dict[str, float | str]
"""What to tell beside the count, such as the current loss, by name."""
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_POLLS = 0.5
SECONDS_BETWEEN_FILES = 10.0


class Progress:
    """Counts `total` units of work; use as a context manager."""

    def __init__(self, stage: str, total: int, unit: str, store: RunStore, done: int = 0) -> None:
        """`store` is where other machines read how far the stage is, while it runs."""
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self._store, self._last_file = store, float("-inf")
        self._last_line = time.monotonic()
        self._counted_from: tuple[int, float] | None = None
        self._facts: Facts = {}
        self._bar = (
            tqdm(total=total, initial=done, desc=stage, unit=unit, smoothing=0.1) if sys.stderr.isatty() else None
        )

    def update(self, done: int, **facts: float | str) -> None:
        """Say that `done` units are finished in all, with facts such as the current loss."""
        if self._counted_from is None and done > self.done:
            # The first that is done says how far an interrupted start had come, and that its workers are there.
            self._counted_from = (done, time.monotonic())
        grown, self.done, self._facts = done - self.done, done, facts
        if self._bar is not None:
            self._bar.set_postfix(_texts(facts), refresh=False)
            self._bar.update(grown)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("%s: %s", self.stage, self._text(facts))
        if time.monotonic() - self._last_file >= SECONDS_BETWEEN_FILES:
            self._last_file = time.monotonic()
            self._tell()

    def _tell(self) -> None:
        with suppress(OSError):  # what is only told must not stop what is done
            self._store.write_json(progress_file(self.stage), self._said(self._facts))

    @property
    def rate(self) -> float:
        """Units per second since the first was done."""
        if self._counted_from is None:
            return 0.0
        done, then = self._counted_from
        return (self.done - done) / max(time.monotonic() - then, 1e-9)

    def _said(self, facts: Facts) -> dict[str, Any]:
        numbers = {name: fact for name, fact in facts.items() if not isinstance(fact, str)}
        numbers[f"{self.unit}s_per_second"] = self.rate
        return {"text": self._text(facts), "time": time.time(), "done": self.done, "numbers": numbers}

    def _text(self, facts: Facts) -> str:
        left = f"{(self.total - self.done) / self.rate:.0f} s left" if self.rate > 0 else "no rate yet"
        told = {"": f"{self.rate:.2f}/s, {left}"} | _texts(facts)
        return f"{self.done}/{self.total} {self.unit}s, " + ", ".join(
            f"{name} {fact}".strip() for name, fact in told.items()
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._tell()


def _texts(facts: Facts) -> dict[str, str]:
    return {name.replace("_", " "): fact if isinstance(fact, str) else f"{fact:.4g}" for name, fact in facts.items()}


@contextmanager
def polled(update: Callable[[], None]) -> Iterator[None]:
    """Call `update` now and then on another thread while the block runs, and once more when it ended well."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(SECONDS_BETWEEN_POLLS):
            update()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    update()
