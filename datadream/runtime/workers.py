"""How many workers of which size a stage gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

CPUS_FOR_DATA_TASKS = 1
"""Ray Train workers hold their CPUs for a whole stage; Ray Data's tasks beside them need at least one more, or both
wait for each other for ever."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a stage."""

    count: int
    threads: int
    use_gpu: bool
    slots: int = 1
    """Workers that the cluster could hold, had nobody asked for fewer."""
    grows: bool = False
    """Whether nodes that join later are used: on a cluster, where nobody asked for a number of workers."""
    least: int = 1
    """A stage starts as soon as there is room for so many."""
    alone: bool = False
    """Whether nobody else uses this Ray, because we started it: all that it holds is ours."""

    @property
    def shares_cores(self) -> bool:
        """Whether another stage's workers would run on the same cores: in a Ray that we start, num_cpus is a quota of
        twice the cores."""
        return self.alone and not self.use_gpu

    def at_most(self, n_units: int) -> Workers:
        """No more workers than there are units for."""
        return replace(self, count=max(1, min(self.count, n_units)))

    def room_on(self, node: Mapping[str, float]) -> int:
        """Workers of this size that a node with these resources holds."""
        return int(node.get("GPU", 0)) if self.use_gpu else int(node.get("CPU", 0)) // self.threads

    def room_in(self, nodes: Collection[Mapping[str, float]]) -> int:
        """Workers of this size that nodes with these resources hold, beside Ray Data's tasks."""
        rooms = sum(map(self.room_on, nodes))
        if self.use_gpu:
            return rooms
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        return max(0, min(rooms, (cpus - CPUS_FOR_DATA_TASKS) // self.threads))

    @property
    def resources(self) -> dict[str, float]:
        """Ray resources of one worker.

        One on a GPU takes no CPU: nodes with more GPUs than CPUs can be used whole, and Ray Data's tasks find a CPU.
        """
        return {"GPU": 1} if self.use_gpu else {"CPU": self.threads}
