"""Ray's errors in our terms: what a worker said, and whether a process or a node died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError, RayTaskError

# Internal: by these alone Ray Train tells a process that died from an error of our code. Where a new Ray changes them,
# tests/runtime/test_worker_groups.py fails.
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError

from datadream.runtime.failures import Failure, Kind, LostPeerError, describe, kind_of


def worker_errors(error: Exception) -> dict[int, Exception]:
    """What the workers of a Ray Train run raised, by rank."""
    return getattr(error, "worker_failures", {})


def failure_of(error: BaseException) -> Failure:
    """What broke a unit: where it reads what one of Ray's tasks makes, what our own code raised in that task.

    That Ray lost what the task had made is a passing fault.
    """
    cause = error
    # One in another where a task waits for what another task makes.
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    if cause is error:
        return Failure.of(error)
    if isinstance(cause, RayError):
        return Failure(Kind.PASSING, describe(cause))
    said = str(cause).partition("\n")[0]  # Ray Data appends lines of advice
    return Failure(kind_of(cause), said if isinstance(cause, ValueError) else f"{type(cause).__name__}: {said}")


def failure_text(error: Exception) -> str:
    """What the workers that failed said, not Ray's account of it."""
    failures = worker_errors(error)
    said = [f"{type(failures[rank]).__name__}: {failures[rank]}" for rank in sorted(failures)]
    return " / ".join(dict.fromkeys(said)) or str(error)


def found_no_room(error: Exception) -> bool:
    """Whether a Ray Train run ended because the cluster's room went to others before its workers could start."""
    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def lost_a_worker(error: Exception) -> bool:
    """Whether a Ray Train run ended because a process or a node died, and not by an error of its code.

    That a node is gone may be heard first from a worker elsewhere that exchanged tensors with it.
    """
    lost = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError, RayError)
    workers = list(worker_errors(error).values())
    ended_by_ray = isinstance(error, (ControllerError, PreemptionError, RayError))
    only_heard = bool(workers) and all(isinstance(failure, LostPeerError) for failure in workers)
    # A RayTaskError is what our own code raised.
    is_lost = [isinstance(failure, lost) and not isinstance(failure, RayTaskError) for failure in workers]
    return ended_by_ray or only_heard or any(is_lost)


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Raise RuntimeError with what a worker said, not Ray's account of it."""
    try:
        yield
    except RayTaskError as error:
        # Ours is the first line; Ray Data appends its retry advice.
        raise RuntimeError(f"{what} failed: {str(error.cause).splitlines()[0]}") from error
    except RayError as error:
        raise RuntimeError(f"{what} failed: {error}") from error
