"""How many workers of which size a stage gets."""

from __future__ import annotations

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
    shares_cores: bool = False
    """Whether another stage's workers would run on the same cores: in a Ray that we start, num_cpus is a quota of
    twice the cores."""

    def at_most(self, n_units: int) -> Workers:
        """No more workers than there are units for."""
        return replace(self, count=max(1, min(self.count, n_units)))

    def slots_in(self, cpus: int, gpus: int) -> int:
        """Workers of this size that so many CPUs and GPUs hold, beside Ray Data's tasks."""
        return gpus if self.use_gpu else (cpus - CPUS_FOR_DATA_TASKS) // self.threads

    @property
    def resources(self) -> dict[str, float]:
        """Ray resources of one worker."""
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": self.threads}

    @property
    def data_resources(self) -> dict[str, float]:
        """Options of one Ray Data actor; Ray Data does not take CPUs and GPUs together."""
        return {"num_cpus": 0, "num_gpus": 1} if self.use_gpu else {"num_cpus": self.threads, "num_gpus": 0}
