"""How far a stage is: workers tell one reporter on the driver, and whoever wants to know listens to it in process.

The bar or the log line, the files that `datadream status` and programs read on other machines, trackers and Ray's
metrics are all listeners. Nothing that only tells may stop what is done, so a listener that fails is muted.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from tqdm import tqdm

from datadream.run.layout import EVENTS, EventRecord, ProgressRecord, progress_file
from datadream.run.store import RunStore

log = logging.getLogger("datadream")

Facts = dict[str, float | str]
"""What to tell beside the count, such as the current loss, by name."""
State = Literal["begun", "running", "done", "stopped"]
SECONDS_BETWEEN_LINES = 60.0
"""In a log that lasts for days, and among the events."""
SECONDS_BETWEEN_POLLS = 0.5
SECONDS_BETWEEN_FILES = 10.0
"""In an object store each file is a request that is paid for."""
SECONDS_OF_DEAFNESS = 60.0
"""In which a listener that failed is told nothing."""
MAX_EVENTS = 1000
"""About 200 kB, and most of a day of one stage."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage at one moment."""

    stage: str
    noun: str
    """What is counted, in the singular."""
    total: int
    done: int
    rate: float | None = None
    """Per second since the first was done; None until then."""
    waiting_for: str = ""
    """What the stage waits for while nothing is done."""
    facts: Facts = field(default_factory=dict)
    state: State = "running"

    @property
    def ended(self) -> bool:
        return self.state in ("done", "stopped")

    @property
    def numbers(self) -> dict[str, float]:
        """For curves."""
        numbers = {name: fact for name, fact in self.facts.items() if not isinstance(fact, str)}
        return numbers | {f"{self.noun}s_per_second": self.rate or 0.0}

    @property
    def text(self) -> str:
        pace = f"waiting for {self.waiting_for}" if self.waiting_for else ""
        if self.rate:
            pace = f"{self.rate:.3g}/s, {duration((self.total - self.done) / self.rate)} left"
        return ", ".join([f"{self.done}/{self.total} {self.noun}s", *filter(None, [pace, *_texts(self.facts)])])


class Listener(Protocol):
    """Hears of every stage's progress, every half second or more often."""

    def hear(self, progress: Progress) -> None: ...


class Reporter:
    """Counts the units of a stage and tells listeners; use as a context manager, which closes with a line."""

    def __init__(
        self,
        stage: str,
        total: int,
        noun: str,
        listeners: Sequence[Listener] = (),
        done: int = 0,
        waiting_for: str = "",
    ) -> None:
        """`done` counts what earlier starts did; `waiting_for` is what the first of this start needs."""
        self._listeners = list(listeners)
        self._deaf_until: dict[int, float] = {}
        """When a listener that failed is told again, by its place."""
        self._started, self._before = time.monotonic(), done
        self._counted_from: tuple[int, float] | None = None
        self._failed = 0
        self.now = Progress(stage, noun, total, done, waiting_for=waiting_for)

    @property
    def done(self) -> int:
        return self.now.done

    def update(self, done: int, waiting_for: str = "", failed: int = 0, **facts: float | str) -> None:
        """`done` units are finished in all; with facts such as the current loss."""
        moment = time.monotonic()
        if self._counted_from is None and done > self.now.done:
            # The first that is done says how far an interrupted start had come, and that its workers are there.
            self._counted_from = (done, moment)
        rate = None
        if self._counted_from is not None and done > self._counted_from[0]:
            rate = (done - self._counted_from[0]) / max(moment - self._counted_from[1], 1e-9)
        self._failed = failed
        told: Facts = dict(facts) | ({"failed": failed} if failed else {})
        self._tell(Progress(self.now.stage, self.now.noun, self.now.total, done, rate, waiting_for, told))

    def _tell(self, progress: Progress) -> None:
        self.now = progress
        for place, listener in enumerate(self._listeners):
            # The end is told to all: who waits for it in a file would wait for ever.
            if time.monotonic() < self._deaf_until.get(place, 0.0) and not progress.ended:
                continue
            try:
                listener.hear(progress)
            except Exception as error:  # files, servers and libraries: each has its own
                if place not in self._deaf_until:
                    log.warning("%s misses some of the progress: %s", type(listener).__name__, error)
                # A store that is away may take long to say so, and workers wait for who tells.
                self._deaf_until[place] = time.monotonic() + SECONDS_OF_DEAFNESS

    def __enter__(self) -> Reporter:
        self._tell(replace(self.now, state="begun"))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._tell(replace(self.now, waiting_for="", state="stopped" if kind else "done"))
        now, took = self.now, duration(time.monotonic() - self._started)
        failed = f", {self._failed} failed" if self._failed else ""
        log.info("%s: %s, %d %ss in %s%s", now.stage, now.state, now.done - self._before, now.noun, took, failed)


class Terminal:
    """A bar for each stage on a terminal; elsewhere a line when it begins and then now and then."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}
        self._last: dict[str, float] = {}

    def hear(self, progress: Progress) -> None:
        if not sys.stderr.isatty():
            # Its end is told by the reporter's closing line.
            if not progress.ended and _is_due(self._last, progress, SECONDS_BETWEEN_LINES):
                begun = "begun, " if progress.state == "begun" else ""
                log.info("%s: %s%s", progress.stage, begun, progress.text)
            return
        bar = self._bars.get(progress.stage)
        if bar is None:
            bar = tqdm(total=progress.total, initial=progress.done, desc=progress.stage, unit=progress.noun)
            self._bars[progress.stage] = bar
        waiting_for = f"waiting for {progress.waiting_for}" if progress.waiting_for else ""
        bar.set_postfix_str(", ".join(filter(None, [waiting_for, *_texts(progress.facts)])), refresh=False)
        if progress.done > bar.n:
            bar.update(progress.done - bar.n)
        else:  # what a stage waits for is news, though nothing is done
            bar.refresh()
        if progress.ended:
            self._bars.pop(progress.stage).close()


class ProgressFile:
    """A file in the run's folder, from which other machines learn how far the stage is; gone when it has ended."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._last: dict[str, float] = {}

    def hear(self, progress: Progress) -> None:
        name = progress_file(progress.stage)
        if progress.ended:
            self._last.pop(progress.stage, None)
            if self._store.exists(name):
                self._store.remove(name)
        elif _is_due(self._last, progress, SECONDS_BETWEEN_FILES):
            said = ProgressRecord(text=progress.text, time=time.time(), done=progress.done, numbers=progress.numbers)
            self._store.write_json(name, said.to_json())


class EventFile:
    """A file in the run's folder that tells programs when stages began and ended, and now and then how far they were.

    It is written anew for each event and so kept small: an object store cannot append.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        before = store.read_bytes(EVENTS).decode().splitlines() if store.exists(EVENTS) else []
        self._lines = deque(before, maxlen=MAX_EVENTS)
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()  # two stages may go on side by side

    def hear(self, progress: Progress) -> None:
        if not _is_due(self._last, progress, SECONDS_BETWEEN_LINES):
            return
        event = EventRecord(
            time=round(time.time(), 1),
            stage=progress.stage,
            state=progress.state,
            done=progress.done,
            total=progress.total,
            unit=progress.noun,
            facts=progress.facts | progress.numbers,
        )
        # The writing too, or the older of two contents could be the last.
        with self._lock:
            self._lines.append(json.dumps(event.to_json(), ensure_ascii=False))
            self._store.write_bytes(EVENTS, "".join(f"{line}\n" for line in self._lines).encode())


def _is_due(last: dict[str, float], progress: Progress, seconds: float) -> bool:
    """Whether a stage begins or ends, or was told of at least so many seconds ago; if so, it is told of now."""
    moment = time.monotonic()
    if progress.state == "running" and moment - last.get(progress.stage, float("-inf")) < seconds:
        return False
    last[progress.stage] = moment
    return True


@contextmanager
def polled(update: Callable[[], None], seconds: float = SECONDS_BETWEEN_POLLS) -> Iterator[None]:
    """Call `update` now and then on another thread while the block runs, and once more when it ended well."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(seconds):
            update()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    update()


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 5 h 7 min: two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _texts(facts: Facts) -> list[str]:
    return [
        f"{name.replace('_', ' ')} {fact if isinstance(fact, str) else f'{fact:.4g}'}" for name, fact in facts.items()
    ]
