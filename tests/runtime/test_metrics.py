"""Ray's own gauges take what stages tell: they refuse names and tags that they were not declared with."""

from dataclasses import replace

from ray.util import metrics as ray_metrics

from datadream.runtime.metrics import RayMetrics
from datadream.runtime.progress import Progress


def test_counts_and_numbers_are_set_by_stage_and_words_are_not(local_ray, monkeypatch):
    told = {}
    set_gauge = ray_metrics.Gauge.set

    def record(gauge, value, tags) -> None:
        set_gauge(gauge, value, tags)
        told[gauge.info["name"], *tags.values()] = value

    monkeypatch.setattr(ray_metrics.Gauge, "set", record)
    said = Progress("adapt", "step", total=10, done=3, rate=2.0, facts={"loss": 0.5, "adapters": "1/5"})
    metrics = RayMetrics()
    metrics.hear(said)
    assert told == {
        ("datadream_done", "adapt", "step"): 3,
        ("datadream_total", "adapt", "step"): 10,
        ("datadream_running", "adapt", "step"): 1,
        ("datadream_fact", "adapt", "loss"): 0.5,
        ("datadream_fact", "adapt", "steps_per_second"): 2.0,
    }
    metrics.hear(replace(said, state="stopped"))
    assert told["datadream_running", "adapt", "step"] == 0
