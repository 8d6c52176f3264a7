"""What a stage says of itself: to the log, to a terminal, to other machines, and to whoever else listens."""

from __future__ import annotations

import io
import logging

import pytest

from datadream.run.layout import progress_file
from datadream.run.store import RunStore
from datadream.runtime import progress as progress_module
from datadream.runtime.progress import Listener, Progress, ProgressFile, Reporter, Terminal, duration, polled


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
        assert stage.rate == 2
    last = recorder.heard[-2]
    assert last.text == "50/100 steps, 2/s, 25 s left, loss 0.1235, adapters 1/5, adapters per hour 600"
    assert last.numbers == {"loss": 0.123456, "adapters_per_hour": 600.0, "steps_per_second": pytest.approx(2)}
    assert recorder.heard[0] == Progress("adapt", "step", total=100, done=10)


def test_a_start_that_goes_on_from_a_checkpoint_has_not_done_its_steps(clock):
    with reporter(total=1000) as stage:
        for done in (0, 900, 910):
            clock.now += 10
            stage.update(done)
        assert stage.rate == 1


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
    assert [progress.ended for progress in recorder.heard] == [False, False, True]
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
    assert recorder.heard[-1].ended


class Broken:
    def hear(self, progress: Progress) -> None:
        raise OSError("disk full")


def test_a_listener_that_fails_is_muted_and_named_once_and_others_go_on(told):
    recorder = Recorder()
    with reporter(Broken(), recorder) as stage:
        stage.update(1)
    assert told.messages == ["Broken no longer hears of the progress: disk full", "adapt: done, 1 steps in 0 s"]
    assert len(recorder.heard) == 3


def test_without_a_terminal_there_is_a_line_now_and_then(clock, told, monkeypatch):
    monkeypatch.setattr(progress_module.sys, "stderr", io.StringIO())
    with reporter(Terminal()) as stage:
        for done in range(1, 41):
            clock.now += 1
            stage.update(done)
    assert told.messages == [
        "adapt: 0/100 steps",
        "adapt: 15/100 steps, 1/s, 1 min 25 s left",
        "adapt: 30/100 steps, 1/s, 1 min 10 s left",
        "adapt: done, 40 steps in 40 s",
    ]


def test_two_stages_side_by_side_both_have_their_lines(told, monkeypatch):
    """Spare workers generate while others train."""
    monkeypatch.setattr(progress_module.sys, "stderr", io.StringIO())
    terminal = Terminal()
    with reporter(terminal), Reporter("generate", 6, "image", [terminal], waiting_for="workers to start"):
        pass
    assert told.messages[:2] == ["adapt: 0/100 steps", "generate: 0/6 images, waiting for workers to start"]


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
