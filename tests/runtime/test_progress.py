"""What a stage says of itself, to the log and to other machines."""

import pytest

from datadream.run.layout import progress_file
from datadream.run.store import RunStore
from datadream.runtime import progress
from datadream.runtime.progress import Progress


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


def test_the_rate_counts_from_when_work_began_and_other_machines_read_it(tmp_path, monkeypatch):
    """20 seconds pass before the first unit is done."""
    clock, store = Clock(), RunStore(str(tmp_path))
    monkeypatch.setattr(progress, "time", clock)
    with Progress("adapt", 100, "step", store, done=10) as bar:
        for seconds, done in ((10, 10), (10, 10), (10, 30), (10, 50)):
            clock.now += seconds
            bar.update(done, loss=0.123456, adapters="1/5", adapters_per_hour=600.0)
        said = store.read_json(progress_file("adapt"))
        assert bar.rate == 2
        assert said["text"] == "50/100 steps, 2.00/s, 25 s left, loss 0.1235, adapters 1/5, adapters per hour 600"
        assert said["numbers"] == {"loss": 0.123456, "adapters_per_hour": 600.0, "steps_per_second": pytest.approx(2)}
        assert said["done"] == 50
        clock.now += 5
        bar.update(100, loss=0.1)
    assert store.read_json(progress_file("adapt"))["done"] == 100


def test_a_start_that_goes_on_from_a_checkpoint_has_not_done_its_steps(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with Progress("adapt", 1000, "step", RunStore(str(tmp_path))) as bar:
        for done in (0, 900, 910):
            clock.now += 10
            bar.update(done)
        assert bar.rate == 1
