"""How a Ray Train run is ended from outside, so that nothing of it stays on the cluster."""

from __future__ import annotations

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

SECONDS_TO_FIND_ROOM = 20.0
"""How long Ray Train waits for the room that was free when we counted; somebody else may have been quicker."""
SECONDS_TO_ABORT = SECONDS_TO_FIND_ROOM + 15.0
"""A controller that waits for room, or for its workers to start, listens only after that."""
SECONDS_TO_INTERRUPT = 1.5
"""The same for somebody who waits at a terminal, or for Kubernetes, Slurm and Ray's job server, which kill what does
not end within seconds. The driver ends next, and with it what it had asked Ray for."""


def abort(controller: ActorHandle, patience: float) -> None:
    """Have a controller give back what it holds and end; kill it when it does not within `patience` seconds.

    Killed while it starts its workers, it would leave their placement group behind until the driver ends, because Ray
    2.60 tells the group's cleaner of it only afterwards; and killed at any time, it leaves that cleaner, a detached
    actor which asks the dashboard whether the controller lives, on clusters without a dashboard for ever.
    """
    try:
        ray.get(controller.abort.remote(), timeout=patience)
    except GetTimeoutError:
        ray.kill(controller)
    except RayError:  # how it says that it has ended
        pass
