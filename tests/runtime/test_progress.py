"""What a stage says of itself: to the log, to a terminal, to other machines, and to whoever else listens."""

from __future__ import annotations

import io
import json
import logging

import pytest

from datadream.run.layout import EVENTS, progress_file
from datadream.run.store import RunStore
from datadream.runtime import progress as progress_module
from datadream.runtime.progress import (
    EventFile,
    Listener,
    Progress,
    ProgressFile,
    Reporter,
    Terminal,
    duration,
    polled,
)


class Clock:
    """Stands still until it is told otherwise."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000 + self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


@pytest.fixture
def told(caplog) -> pytest.LogCaptureFixture:
    """`told.messages` is what the log says."""
    caplog.set_level(logging.INFO, "datadream")
    return caplog


class Recorder:
    """Listens, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Progress] = []

    def hear(self, progress: Progress) -> None:
        self.heard.append(progress)

    @property
    def texts(self) -> list[str]:
        return [progress.text for progress in self.heard]


def reporter(*listeners: Listener, total: int = 100, done: int = 0, waiting_for: str = "") -> Reporter:
    return Reporter("adapt", total, "step", listeners, done, waiting_for)


def test_the_rate_counts_from_when_work_began(clock):
    """20 seconds pass before the first unit is done."""
    recorder = Recorder()
    with reporter(recorder, done=10) as stage:
        for done in (10, 10, 30, 50):
            clock.now += 10
            stage.update(done, loss=0.123456, adapters="1/5", adapters_per_hour=600.0)
        assert stage.now.rate == 2
    last = recorder.heard[-2]
    assert last.text == "50/100 steps, 2/s, 25 s left, loss 0.1235, adapters 1/5, adapters per hour 600"
    assert last.numbers == {"loss": 0.123456, "adapters_per_hour": 600.0, "steps_per_second": pytest.approx(2)}
    assert recorder.heard[0] == Progress("adapt", "step", total=100, done=10, state="begun")


def test_a_start_that_goes_on_from_a_checkpoint_has_not_done_its_steps(clock):
    with reporter(total=1000) as stage:
        for done in (0, 900, 910):
            clock.now += 10
            stage.update(done)
        assert stage.now.rate == 1


def test_what_it_waits_for_is_told_until_the_first_is_done(clock):
    recorder = Recorder()
    with reporter(recorder, waiting_for="workers to start") as stage:
        stage.update(0, "2 workers to start")
        clock.now += 1
        stage.update(5)
        clock.now += 1
        stage.update(10)
    assert recorder.texts[:4] == [
        "0/100 steps, waiting for workers to start",
        "0/100 steps, waiting for 2 workers to start",
        "5/100 steps",
        "10/100 steps, 5/s, 18 s left",
    ]


def test_the_end_is_heard_and_a_closing_line_counts_this_start_alone(clock, told):
    recorder = Recorder()
    with reporter(recorder, done=40) as stage:
        clock.now += 200
        stage.update(98, failed=2)
    assert told.messages == ["adapt: done, 58 steps in 3 min 20 s, 2 failed"]
    assert [progress.state for progress in recorder.heard] == ["begun", "running", "done"]
    assert recorder.heard[-1].facts == {"failed": 2}


def test_a_stage_that_breaks_says_that_it_stopped(told):
    recorder = Recorder()

    def work() -> None:
        with reporter(recorder) as stage:
            stage.update(3)
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert told.messages == ["adapt: stopped, 3 steps in 0 s"]
    assert recorder.heard[-1].state == "stopped"


class Broken:
    def hear(self, progress: Progress) -> None:
        raise OSError("disk full")


class Away(Recorder):
    """A file in a store that is away for a while."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self._clock, self._until = clock, clock.now + seconds

    def hear(self, progress: Progress) -> None:
        if self._clock.now < self._until:
            raise OSError("slow down")
        super().hear(progress)


def test_a_listener_that_fails_is_named_once_is_left_alone_for_a_while_and_hears_the_end(clock, told):
    broken, away, others = Broken(), Away(clock, seconds=90), Recorder()
    with reporter(broken, away, others) as stage:
        for done in range(150):
            clock.now += 1
            stage.update(done)
    assert told.messages == [
        "Broken misses some of the progress: disk full",
        "Away misses some of the progress: slow down",
        "adapt: done, 149 steps in 2 min 30 s",
    ]
    assert len(others.heard) == 152
    assert [progress.done for progress in away.heard] == [*range(119, 150), 149]
    assert away.heard[-1].state == "done"


def test_the_end_is_told_also_to_who_failed_a_moment_ago(clock):
    away = Away(clock, seconds=1)
    with reporter(away):
        clock.now += 2
    assert [progress.state for progress in away.heard] == ["done"]


def test_without_a_terminal_there_is_a_line_now_and_then(clock, told, monkeypatch):
    monkeypatch.setattr(progress_module.sys, "stderr", io.StringIO())
    with reporter(Terminal(), total=400) as stage:
        for done in range(1, 151):
            clock.now += 1
            stage.update(done)
    assert told.messages == [
        "adapt: begun, 0/400 steps",
        "adapt: 60/400 steps, 1/s, 5 min 40 s left",
        "adapt: 120/400 steps, 1/s, 4 min 40 s left",
        "adapt: done, 150 steps in 2 min 30 s",
    ]


def test_two_stages_side_by_side_both_have_their_lines(told, monkeypatch):
    """Spare workers generate while others train."""
    monkeypatch.setattr(progress_module.sys, "stderr", io.StringIO())
    terminal = Terminal()
    with reporter(terminal), Reporter("generate", 6, "image", [terminal], waiting_for="workers to start"):
        pass
    assert told.messages[:2] == [
        "adapt: begun, 0/100 steps",
        "generate: begun, 0/6 images, waiting for workers to start",
    ]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_which_is_closed_at_the_end(told, monkeypatch):
    screen = Tty()
    monkeypatch.setattr(progress_module.sys, "stderr", screen)
    terminal = Terminal()
    with reporter(terminal, done=40, waiting_for="workers to start") as stage:
        assert "waiting for workers to start" in screen.getvalue()
        stage.update(100, loss=0.5)
    last = screen.getvalue().rstrip().rpartition("\r")[2]
    assert last.startswith("adapt: 100%")
    assert "100/100" in last
    assert "loss 0.5" in last
    assert told.messages == ["adapt: done, 60 steps in 0 s"]


def test_other_machines_read_how_far_a_stage_is_until_it_ends(clock, tmp_path):
    store = RunStore(str(tmp_path))
    name = progress_file("adapt")
    with reporter(ProgressFile(store)) as stage:
        assert store.read_json(name) == {
            "text": "0/100 steps",
            "time": 1_000_100.0,
            "done": 0,
            "numbers": {"steps_per_second": 0.0},
        }
        for done in (5, 10):
            clock.now += 6
            stage.update(done, loss=0.5)
        said = store.read_json(name)
        assert said["done"] == 10
        assert said["numbers"]["loss"] == 0.5
        clock.now += 6
        stage.update(15)
        assert store.read_json(name) == said, "in an object store each file is paid for"
    assert not store.exists(name)


def test_the_file_of_a_stage_that_breaks_goes_as_well(tmp_path):
    store = RunStore(str(tmp_path))
    with pytest.raises(KeyError), reporter(ProgressFile(store)):
        raise KeyError("x")
    assert store.files("stages") == set()


def events(store: RunStore) -> list[dict]:
    return [json.loads(line) for line in store.read_bytes(EVENTS).splitlines()]


@pytest.mark.parametrize("url", ["{}", "memory://{}"])
def test_programs_read_when_stages_began_and_ended_over_all_starts(clock, tmp_path, url):
    """Also in object stores, which cannot append."""
    store = RunStore(url.format(tmp_path))
    with reporter(EventFile(store)) as stage:
        for done in (1, 2, 3):
            clock.now += 30
            stage.update(done, failed=1)
    with pytest.raises(KeyError), reporter(EventFile(store), done=3):
        raise KeyError("x")
    told = events(store)
    assert [(event["state"], event["done"]) for event in told] == [
        ("begun", 0),
        ("running", 2),
        ("done", 3),
        ("begun", 3),
        ("stopped", 3),
    ]
    assert told[2] == {
        "time": 1_000_190.0,
        "stage": "adapt",
        "state": "done",
        "done": 3,
        "total": 100,
        "unit": "step",
        "facts": {"failed": 1, "steps_per_second": pytest.approx(2 / 60)},
    }


def test_of_many_events_the_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(progress_module, "MAX_EVENTS", 3)
    store = RunStore(str(tmp_path))
    for done in range(4):
        with reporter(EventFile(store), done=done):
            pass
    assert [(event["state"], event["done"]) for event in events(store)] == [("done", 2), ("begun", 3), ("done", 3)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (18_420, "5 h 7 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_polling_calls_once_more_at_the_end_unless_the_block_breaks():
    calls: list[None] = []
    with polled(lambda: calls.append(None)):
        before = len(calls)
    assert len(calls) > before
    del calls[:]
    with pytest.raises(KeyError), polled(lambda: calls.append(None)):
        raise KeyError("x")
    assert not calls
