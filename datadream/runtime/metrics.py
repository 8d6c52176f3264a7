"""Ray's metrics, for whatever scrapes the cluster: how far the stages are, by stage."""

from __future__ import annotations

from ray.util.metrics import Gauge

from datadream.runtime.progress import Progress


class RayMetrics:
    """Sets gauges from the driver, which hears of all workers anyway; needs a connected Ray."""

    def __init__(self) -> None:
        self._done = Gauge("datadream_done", "Units of a stage that are done.", tag_keys=("stage", "unit"))
        self._total = Gauge("datadream_total", "Units of a stage in all.", tag_keys=("stage", "unit"))
        self._running = Gauge("datadream_running", "1 while a stage works, then 0.", tag_keys=("stage", "unit"))
        self._facts = Gauge("datadream_fact", "Numbers that a stage tells, by name.", tag_keys=("stage", "name"))

    def hear(self, progress: Progress) -> None:
        tags = {"stage": progress.stage, "unit": progress.noun}
        self._done.set(progress.done, tags=tags)
        self._total.set(progress.total, tags=tags)
        self._running.set(0 if progress.ended else 1, tags=tags)
        for name, number in progress.numbers.items():
            self._facts.set(number, tags={"stage": progress.stage, "name": name})
