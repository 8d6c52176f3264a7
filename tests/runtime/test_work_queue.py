"""Who trains what, whoever dies."""

import pytest

from datadream.runtime.failures import GIVE_UP_AFTER, Failure, Kind
from datadream.runtime.unit import Unit
from datadream.runtime.work_queue import SECONDS_BEFORE_SAME_PLACE, QueueProgress, WorkQueue

LEASE_SECONDS = 60.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def unit(name: str, size: int, run_url: str = "run") -> Unit:
    return Unit(run_url=run_url, name=name, marker=f"adapters/{name}.json", payload=None, size=size)


def names(group) -> list[str]:
    return [unit.name for unit in group.units]


def own(reason: str) -> Failure:
    return Failure(Kind.UNIT, reason)


def hosts(reason: str) -> Failure:
    return Failure(Kind.HOST, reason)


def queue(clock, *sizes: int, done: set[int] = frozenset()) -> WorkQueue:
    units = [unit(f"a{i}", size) for i, size in enumerate(sizes)]
    return WorkQueue(units, [i in done for i in range(len(sizes))], LEASE_SECONDS, clock)


def test_long_trainings_first_and_equal_steps_together(clock):
    waiting = queue(clock, 5, 9, 5, 5, 9, 5)
    assert names(waiting.lease("0", "x", 3)) == ["a1", "a4"]
    assert names(waiting.lease("1", "y", 3)) == ["a0"]
    assert names(waiting.lease("2", "z", 3)) == ["a2", "a3", "a5"]
    assert waiting.lease("3", "w", 3) is None
    assert not waiting.is_over()


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
    waiting.finish("y", "0", second, {})
    assert names(waiting.lease("1", "y", 1)) == ["a2"]


def test_a_lease_runs_out_unless_it_is_renewed(clock):
    waiting = queue(clock, 5, 5)
    slow, busy = waiting.lease("0", "slow", 1), waiting.lease("1", "busy", 1)
    clock.now = 0.9 * LEASE_SECONDS
    waiting.report("busy", 1)
    assert waiting.lease("2", "idle", 1) is None
    clock.now = 1.1 * LEASE_SECONDS
    assert names(waiting.lease("2", "idle", 1)) == names(slow)
    waiting.finish("slow", "0", slow, {})
    waiting.finish("idle", "0", slow, {})
    assert not waiting.is_over()
    waiting.finish("busy", "0", busy, {})
    assert waiting.is_over()


def test_steps_count_those_committed_before_in_training_and_done(clock):
    waiting = queue(clock, 5, 5, 5, done={0})
    assert waiting.progress() == QueueProgress(done=5, units=1, failed=0, loss=None, workers=0)
    group = waiting.lease("0", "x", 3)
    waiting.report("x", 2, 0.25)
    assert waiting.progress() == QueueProgress(done=5 + 2 * 2, units=1, failed=0, loss=0.25, workers=1)
    waiting.finish("x", "0", group, {2: own("its photo is gone")})
    assert waiting.progress() == QueueProgress(done=15, units=2, failed=1, loss=None, workers=1)
    assert list(waiting.failures().values()) == ["its photo is gone"]


def test_a_unit_that_costs_three_workers_is_given_up(clock):
    waiting = queue(clock, 5, 5)
    for worker in ("first", "second", "third"):
        assert names(waiting.lease("0", worker, 1)) == ["a0"]
    assert names(waiting.lease("0", "fourth", 1)) == ["a1"]
    assert list(waiting.failures().values()) == ["given up after 3 attempts: its workers died or fell silent."]


def test_a_host_that_fails_unit_after_unit_gets_no_more_and_the_others_do_them_all(clock):
    """One node without the photos used to fail 95 of 100 adapters for good while another trained its first five."""
    waiting = queue(clock, *[5] * 10)
    good = waiting.lease("good/0", "g", 1)
    while (group := waiting.lease("bad/0", "b", 1)) is not None:
        waiting.finish("b", "bad/0", group, {group.positions[0]: hosts("FileNotFoundError: no photos here")})
    assert waiting.left_out() == {"bad/0": "FileNotFoundError: no photos here"}
    assert waiting.is_over("bad/0")
    assert waiting.n_open() == 10
    while good is not None:
        waiting.finish("g", "good/0", good, {})
        good = waiting.lease("good/0", "g", 1)
    assert waiting.is_over()
    assert waiting.failures() == {}


def test_a_unit_that_meets_a_hosts_fault_goes_to_another_place_first_and_is_given_up_after_three(clock):
    waiting = queue(clock, 5, 5)
    first = waiting.lease("0", "x", 1)
    waiting.finish("x", "0", first, {0: hosts("CUDA error")})
    other = waiting.lease("0", "x", 1)
    assert names(other) == ["a1"]
    assert names(waiting.lease("1", "y", 1)) == names(first)
    waiting.finish("y", "1", first, {0: hosts("CUDA error")})
    waiting.finish("x", "0", other, {})
    assert waiting.lease("0", "x", 1) is None
    clock.now += SECONDS_BEFORE_SAME_PLACE
    assert names(waiting.lease("0", "x", 1)) == names(first)
    waiting.finish("x", "0", first, {0: hosts("CUDA error")})
    assert waiting.is_over()
    assert list(waiting.failures().values()) == ["given up after 3 attempts: CUDA error"]
    assert waiting.left_out() == {}


def test_a_place_that_does_a_unit_is_trusted_again(clock):
    waiting = queue(clock, *[5] * 8)
    for attempt in range(8):
        group = waiting.lease("0", "x", 1)
        fault = {group.positions[0]: hosts("a time-out")} if attempt % 3 != 2 else {}
        waiting.finish("x", "0", group, fault)
    assert waiting.left_out() == {}


def test_a_place_whose_worker_cannot_start_is_left_out_after_three_and_at_once_for_what_is_no_hosts_fault(clock):
    waiting = queue(clock, 5)
    for _ in range(GIVE_UP_AFTER):
        assert not waiting.is_over("0")
        waiting.cannot_start("0", hosts("OSError: the Hub is down"))
    assert waiting.is_over("0")
    waiting.cannot_start("1", own("no such prediction type"))
    assert waiting.left_out() == {"0": "OSError: the Hub is down", "1": "no such prediction type"}
    assert names(waiting.lease("2", "x", 1)) == ["a0"]


def test_a_group_of_workers_that_is_gone_leaves_its_groups_to_others(clock):
    waiting = queue(clock, 5, 5, 5)
    lost = waiting.lease("group-0/1", "x", 1)
    waiting.lease("group-1/1", "y", 1)
    waiting.disband("group-0")
    assert names(waiting.lease("group-1/2", "z", 1)) == names(lost)


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
    waiting.finish("first", "0", group, {})
    assert waiting.failures() == {}


def test_a_hosts_fault_that_comes_late_is_no_second_strike(clock):
    """The lease ran out, which was one, and another worker has the unit by now."""
    waiting = queue(clock, 5)
    group = waiting.lease("a", "slow", 1)
    clock.now += 2 * LEASE_SECONDS
    again = waiting.lease("b", "second", 1)
    assert names(again) == names(group)
    waiting.finish("slow", "a", group, {0: hosts("the store is away")})
    assert waiting.lease("c", "third", 1) is None, "the second worker has it"
    waiting.finish("second", "b", again, {})
    assert (waiting.is_over(), waiting.failures()) == (True, {})


def test_a_committed_neighbour_cannot_fail(clock):
    waiting = queue(clock, 5, 5, done={0})
    waiting.finish("x", "0", waiting.lease("0", "x", 2), {0: own("its photo is gone")})
    assert waiting.failures() == {}


def test_units_of_several_runs_with_one_name_fail_apart(clock):
    made = [unit("class-00000", 5, f"table/cells/seed{i}") for i in range(2)]
    waiting = WorkQueue(made, [False, False], LEASE_SECONDS, clock)
    waiting.finish("x", "0", waiting.lease("0", "x", 2), {0: own("no"), 1: own("no")})
    assert waiting.failures() == {each.key: "no" for each in made}


def test_usage_counts_what_is_lost_between_groups_and_at_the_end(clock):
    waiting = queue(clock, 5, 5, 5)
    for name in ("x", "y", "x"):
        group = waiting.lease(name, name, 1)
        clock.now += 8
        waiting.finish(name, name, group, {})
        clock.now += 2
    assert waiting.usage() == {"workers": 2, "seconds": 28 + 18, "busy_seconds": 24}


def test_usage_counts_a_worker_that_is_lost_until_it_was_last_heard_of(clock):
    waiting = queue(clock, 5, 5, 5)
    for name in ("group-0/0", "group-1/0"):
        waiting.lease(name, name, 1)
    clock.now = 4
    waiting.report("group-0/0", 1)
    waiting.disband("group-0")
    for clock.now in (10, 20, 30):
        group = waiting.lease("group-1/0", "group-1/0", 1)
        waiting.finish("group-1/0", "group-1/0", group, {})
    assert waiting.usage() == {"workers": 2, "seconds": 4 + 30, "busy_seconds": 0}
