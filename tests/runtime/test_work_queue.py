"""Who trains what, whoever dies."""

import pytest

from datadream.methods.base import AdapterSpec
from datadream.runtime.work_queue import AdapterJob, AdapterQueue, QueueProgress

LEASE_SECONDS = 60.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def jobs(*steps: int) -> list[AdapterJob]:
    return [AdapterJob("run", AdapterSpec(f"a{i}", (), 1, 0), n) for i, n in enumerate(steps)]


def names(group) -> list[str]:
    return [job.spec.adapter_id for job in group.jobs]


def queue(clock, *steps: int, done: set[int] = frozenset()) -> AdapterQueue:
    return AdapterQueue(jobs(*steps), [i in done for i in range(len(steps))], LEASE_SECONDS, clock)


def test_long_trainings_first_and_equal_steps_together(clock):
    waiting = queue(clock, 5, 9, 5, 5, 9, 5)
    assert names(waiting.lease("0", "x", 3)) == ["a1", "a4"]
    assert names(waiting.lease("1", "y", 3)) == ["a0"]
    assert names(waiting.lease("2", "z", 3)) == ["a2", "a3", "a5"]
    assert waiting.lease("3", "w", 3) is None
    assert not waiting.is_done()


def test_groups_are_the_same_after_an_interruption(clock):
    whole = queue(clock, 5, 5, 5, 5)
    assert [names(whole.lease(str(i), str(i), 2)) for i in range(2)] == [["a0", "a1"], ["a2", "a3"]]
    group = queue(clock, 5, 5, 5, 5, done={0, 1, 2}).lease("0", "x", 2)
    assert names(group) == ["a2", "a3"]
    assert group.missing == (False, True)


def test_a_replaced_worker_loses_its_group_to_whoever_asks_first(clock):
    waiting = queue(clock, 5, 5, 5)
    first, second = waiting.lease("0", "x", 1), waiting.lease("1", "y", 1)
    assert names(waiting.lease("0", "its successor", 1)) == names(first)
    waiting.finish("y", second, {})
    assert names(waiting.lease("1", "y", 1)) == ["a2"]


def test_a_lease_runs_out_unless_it_is_renewed(clock):
    waiting = queue(clock, 5, 5)
    slow, busy = waiting.lease("0", "slow", 1), waiting.lease("1", "busy", 1)
    clock.now = 0.9 * LEASE_SECONDS
    waiting.report("busy", 1)
    assert waiting.lease("2", "idle", 1) is None
    clock.now = 1.1 * LEASE_SECONDS
    assert names(waiting.lease("2", "idle", 1)) == names(slow)
    waiting.finish("slow", slow, {})
    waiting.finish("idle", slow, {})
    assert not waiting.is_done()
    waiting.finish("busy", busy, {})
    assert waiting.is_done()


def test_steps_count_those_committed_before_in_training_and_done(clock):
    waiting = queue(clock, 5, 5, 5, done={0})
    assert waiting.progress() == QueueProgress(steps=5, adapters=1, failed=0, loss=None)
    group = waiting.lease("0", "x", 3)
    waiting.report("x", 2, 0.25)
    assert waiting.progress() == QueueProgress(steps=5 + 2 * 2, adapters=1, failed=0, loss=0.25)
    waiting.finish("x", group, {2: "its photo is gone"})
    assert waiting.progress() == QueueProgress(steps=15, adapters=2, failed=1, loss=None)
    assert waiting.failures() == ["a2: its photo is gone"]


def test_an_adapter_that_costs_three_workers_is_given_up(clock):
    waiting = queue(clock, 5, 5)
    for worker in ("first", "second", "third"):
        assert names(waiting.lease("0", worker, 1)) == ["a0"]
    assert names(waiting.lease("0", "fourth", 1)) == ["a1"]
    assert waiting.failures() == ["a0: 3 workers died or fell silent while they trained it."]


def test_what_no_worker_can_do_ends_it_all(clock):
    waiting = queue(clock, 5)
    waiting.give_up("OSError: no model")
    assert waiting.is_done()
    assert waiting.lease("0", "x", 1) is None
    assert waiting.hopeless() == "OSError: no model"


def test_a_squad_that_is_gone_leaves_its_groups_to_others(clock):
    waiting = queue(clock, 5, 5, 5)
    lost = waiting.lease("squad-0/1", "x", 1)
    waiting.lease("squad-1/1", "y", 1)
    waiting.disband("squad-0")
    assert names(waiting.lease("squad-1/2", "z", 1)) == names(lost)


def test_the_first_size_holds_for_all(clock):
    waiting = queue(clock, 5, 5, 5, 5)
    assert names(waiting.lease("0", "x", 2)) == ["a0", "a1"]
    assert names(waiting.lease("1", "y", 4)) == ["a2", "a3"]


def test_a_result_that_comes_late_clears_the_failure(clock):
    waiting = queue(clock, 5)
    group = waiting.lease("0", "first", 1)
    for worker in ("second", "third", "fourth"):
        waiting.lease("0", worker, 1)
    assert len(waiting.failures()) == 1
    waiting.finish("first", group, {})
    assert waiting.failures() == []


def test_a_committed_neighbour_cannot_fail(clock):
    waiting = queue(clock, 5, 5, done={0})
    waiting.finish("x", waiting.lease("0", "x", 2), {0: "its photo is gone"})
    assert waiting.failures() == []


def test_failures_name_the_run_where_there_are_several(clock):
    specs = [AdapterSpec("class-00000", (), 1, 0)] * 2
    made = [AdapterJob(f"table/cells/seed{i}", spec, 5) for i, spec in enumerate(specs)]
    waiting = AdapterQueue(made, [False, False], LEASE_SECONDS, clock)
    waiting.finish("x", waiting.lease("0", "x", 2), {0: "no", 1: "no"})
    assert waiting.failures() == ["seed0/class-00000: no", "seed1/class-00000: no"]


def test_usage_counts_what_is_lost_between_groups_and_at_the_end(clock):
    waiting = queue(clock, 5, 5, 5)
    for name in ("x", "y", "x"):
        group = waiting.lease(name, name, 1)
        clock.now += 8
        waiting.finish(name, group, {})
        clock.now += 2
    assert waiting.usage() == {"workers": 2, "seconds": 28 + 18, "busy_seconds": 24}
