"""Where the work is done, and where to look at it: the knobs that do not change the result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from datadream.config.section import Section

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class ClusterConfig(Section):
    """Where the work is done; changes the result by no more than rounding."""

    address: str | None = None
    """Ray cluster to join; unset: $RAY_ADDRESS if set, else a Ray that this command starts on this machine."""
    workers: int | None = Field(None, ge=1)
    """Workers of a stage; unset: one per GPU, or as many as the CPUs allow."""
    min_workers: int = Field(1, ge=1)
    """On a cluster, a stage starts as soon as there is room for so many, and grows from there."""
    max_workers: int | None = Field(None, ge=1)
    """Room to ask an autoscaling cluster for, in workers, where workers is unset; unset too: as many as the run has
    units for."""
    wait_minutes: float | None = Field(None, ge=0)
    """How long to wait for nodes that hold min_workers; unset: 15 where the cluster says what may come, else 0. In Ray
    2.60 neither KubeRay nor `ray up` says so: set it there."""
    threads_per_worker: int = Field(1, ge=1)
    """CPU threads of a worker. Results agree to the last bit only between runs of equal threads."""
    lease_seconds: float = Field(120.0, gt=0)
    """After so many seconds without a sign of a worker, its adapters go to others. Must exceed the longest step,
    the reading of an adapter's photos, and with adapt.prior_weight the generation of eight samples."""
    checkpoint_steps: int = Field(500, ge=1)
    """An adapter of several classes and a classifier, which take long, are saved every so many steps, to go on from
    there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers; auto: cuda where the cluster has GPUs."""

    @model_validator(mode="after")
    def _check_bounds(self) -> ClusterConfig:
        for knob, most in (("workers", self.workers), ("max_workers", self.max_workers)):
            if most is not None and most < self.min_workers:
                raise ValueError(
                    f"min_workers is {self.min_workers}, but {knob} is {most}. Raise it, or lower min_workers."
                )
        return self


class TrackingConfig(Section):
    """Where else to look at a run while it goes on; has no effect on the result."""

    to: tuple[TrackerName, ...] | None = None
    """Any of tensorboard, wandb and mlflow, each configured by its own environment variables. Unset: TensorBoard's
    files in the run's folder, where that is no object store."""
    project: str = "datadream"
    """W&B's project, MLflow's experiment."""
