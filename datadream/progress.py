"""Progress of a stage: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger("datadream")

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_POLLS = 0.5


class Progress:
    """Counts `total` units of work; use as a context manager."""

    def __init__(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self._at_start, self._started = done, time.monotonic()
        self._last_line = self._started
        self._bar = (
            tqdm(total=total, initial=done, desc=stage, unit=unit, smoothing=0.1) if sys.stderr.isatty() else None
        )

    def update(self, done: int, **facts: object) -> None:
        """Say that `done` units are finished in all, with facts such as the current loss."""
        grown, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.set_postfix({name: str(fact) for name, fact in facts.items()}, refresh=False)
            self._bar.update(grown)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line(facts)

    def _line(self, facts: dict[str, object]) -> None:
        self._last_line = time.monotonic()
        rate = (self.done - self._at_start) / (self._last_line - self._started)
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else "no rate yet"
        text = "".join(f", {name} {fact}" for name, fact in facts.items())
        log.info("%s: %d/%d %ss, %.2f/s, %s%s", self.stage, self.done, self.total, self.unit, rate, left, text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


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
