"""Where the workers of a stage say how far they are, for the driver to show."""

from __future__ import annotations

from contextlib import suppress

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from datadream.runtime.progress import Facts, Progress
from datadream.runtime.session import beside_driver


@ray.remote
class Monitor:
    """Holds the latest that was said."""

    def __init__(self) -> None:
        self._latest: tuple[int, Facts] = (0, {})

    def put(self, done: int, facts: Facts) -> None:
        self._latest = (done, facts)

    def latest(self) -> tuple[int, Facts]:
        return self._latest


def start_monitor() -> ActorHandle:
    """A monitor on the driver's node."""
    return Monitor.options(**beside_driver()).remote()


def show(monitor: ActorHandle, progress: Progress, before: int = 0) -> None:
    """Update the progress line with what was last said, after `before` units that were done elsewhere."""
    # Without the monitor there is nothing to show; why it is gone is for the stage to say.
    with suppress(RayError):
        done, latest = ray.get(monitor.latest.remote())
        progress.update(before + done, **latest)
