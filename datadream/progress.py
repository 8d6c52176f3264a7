"""Progress of a stage: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm

from datadream.run_store import RunStore, progress_file

log = logging.getLogger("datadream")

Facts = dict[str, object]
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
        self._at_start, self._started = done, time.monotonic()
        self._heard = self._last_line = self._started
        self._bar = (
            tqdm(total=total, initial=done, desc=stage, unit=unit, smoothing=0.1) if sys.stderr.isatty() else None
        )

    def update(self, done: int, **facts: object) -> None:
        """Say that `done` units are finished in all, with facts such as the current loss."""
        if self.done == self._at_start:
            self._started = self._heard  # nothing was done so far: workers started
        self._heard = time.monotonic()
        grown, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.set_postfix({name: str(fact) for name, fact in facts.items()}, refresh=False)
            self._bar.update(grown)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("%s: %s", self.stage, self._text(facts))
        if time.monotonic() - self._last_file >= SECONDS_BETWEEN_FILES:
            self._last_file = time.monotonic()
            with suppress(OSError):  # what is only told must not stop what is done
                self._store.write_json(progress_file(self.stage), {"text": self._text(facts), "time": time.time()})

    def _text(self, facts: Facts) -> str:
        rate = (self.done - self._at_start) / (time.monotonic() - self._started)
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else "no rate yet"
        text = "".join(f", {name} {fact}" for name, fact in facts.items())
        return f"{self.done}/{self.total} {self.unit}s, {rate:.2f}/s, {left}{text}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        with suppress(OSError):
            self._store.remove(progress_file(self.stage))


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
