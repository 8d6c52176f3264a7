"""What workers warn of, for the driver to say: Ray shows nobody its workers' logs."""

from __future__ import annotations

import logging
from collections.abc import Iterable

log = logging.getLogger(__name__)

SOURCES = ("datadream", "torch._dynamo")
"""Ours, and torch's compiler, which says here alone that it gives a graph up."""


class Notices(logging.Handler):
    """Keeps the warnings of this process until they are taken, each once. Errors are told as failures of units."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()
        self._new: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = next(iter(record.getMessage().splitlines()), "")
        if record.levelno == logging.WARNING and text not in self._said:
            self._said.add(text)
            self._new.append(text)

    def take(self) -> list[str]:
        """Those since the last call."""
        taken, self._new = self._new, []
        return taken


def listen() -> Notices:
    """Keep what this worker process warns of from now on; the same notices each time."""
    for handler in logging.getLogger(SOURCES[0]).handlers:
        if isinstance(handler, Notices):
            return handler
    notices = Notices()
    for name in SOURCES:
        logging.getLogger(name).addHandler(notices)
    return notices


class Said:
    """The driver's side: says each notice once, however many workers have it."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def say(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._texts:
                self._texts.add(text)
                log.warning("a worker: %s", text)
