"""TensorBoard, Weights & Biases and MLflow: one run of theirs for a run of ours, and one row for each adapter.

They listen to the reporters of the stages like the progress bar does, so no stage knows of them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from datadream.config import ExperimentConfig, TrackerName, flatten, public_config
from datadream.hashing import sha256
from datadream.run.store import RunStore
from datadream.runtime.progress import SECONDS_OF_DEAFNESS, Progress

log = logging.getLogger(__name__)

# W&B throttles clients that log more often than about once a second for long.
SECONDS_BETWEEN_POINTS = 5.0
# What to install, and to import.
PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

Row = dict[str, Any]


class Tracker(Protocol):
    """A place where people look at runs."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Points of curves."""

    def table(self, name: str, rows: Sequence[Row]) -> None:
        """Rows with equal keys."""

    def close(self, failed: bool) -> None:
        """All is said."""


def check_trackers(config: ExperimentConfig, store: RunStore) -> None:
    """Raises ValueError for a tracker that is not installed, or that cannot write where the run is."""
    for name in config.tracking.to or ():
        package = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            fix = f"pip install {package}, or leave it out."
            raise ValueError(f"tracking.to has {name!r}, which is not installed. {fix}")
        if name == "tensorboard" and not store.is_local:
            raise ValueError(
                f"tracking.to has 'tensorboard', which writes to folders, but the run is at {store.url!r}. "
                "Leave it out."
            )


class Tracking:
    """All trackers of a run; hears of the progress of its stages. Best effort: reporting never fails a stage."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers, self._last = trackers, dict[str, float]()
        self._deaf_until: dict[int, float] = {}
        """When a tracker that failed is told again, by its place."""

    def hear(self, progress: Progress) -> None:
        """Pass on a point of each curve, now and then and at the end; what a stage said last is never lost."""
        moment = time.monotonic()
        if progress.ended or moment - self._last.get(progress.stage, float("-inf")) > SECONDS_BETWEEN_POINTS:
            values = {f"{progress.stage}/{name}": value for name, value in progress.numbers.items()}
            for place, tracker in enumerate(self._trackers):
                # A server that is away may take minutes to say so, in which nothing else is looked after. Each tracker
                # by itself, and so not by the reporter, to which all of them are one listener.
                if moment < self._deaf_until.get(place, 0.0) and not progress.ended:
                    continue
                if not _told(tracker.scalars, values, progress.done):
                    self._deaf_until[place] = time.monotonic() + SECONDS_OF_DEAFNESS
            self._last[progress.stage] = time.monotonic()

    def table(self, name: str, rows: Sequence[Row]) -> None:
        """Show rows with equal keys."""
        for tracker in self._trackers if rows else ():
            _told(tracker.table, name, rows)


@contextmanager
def tracked(config: ExperimentConfig, store: RunStore) -> Iterator[Tracking]:
    """The trackers that `config` asks for, for the length of a block; a run that goes on continues theirs."""
    # TensorBoard writes to folders, which an object store does not have.
    default: tuple[TrackerName, ...] = ("tensorboard",) if store.is_local else ()
    trackers: list[Tracker] = []
    for name in default if config.tracking.to is None else config.tracking.to:
        _told(lambda kind: trackers.append(kind(config, store)), TRACKERS[name])
    failed = True
    try:
        yield Tracking(trackers)
        failed = False
    finally:
        for tracker in trackers:
            _told(tracker.close, failed)


def _told(tell: Callable[..., Any], *what: Any) -> bool:
    try:
        tell(*what)
        return True
    except Exception as error:  # trackers talk to servers, and each library has its own errors
        log.warning("a tracker failed: %s: %s", type(error).__name__, error)
        return False


class TensorBoard:
    """Event files in the run's folder: tensorboard --logdir RUN."""

    def __init__(self, config: ExperimentConfig, store: RunStore) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(store.path("tensorboard"))

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, rows: Sequence[Row]) -> None:
        # TensorBoard has no tables, but shows text as Markdown.
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run, found again by the run's URL."""

    def __init__(self, config: ExperimentConfig, store: RunStore) -> None:
        import wandb

        # id and resume: a run that goes on continues its curves. The id is a hash, for a location may hold names and
        # secrets.
        self._wandb = wandb
        self._run = wandb.init(
            project=config.tracking.project,
            name=store.name,
            id=sha256(store.url.encode())[:12],
            resume="allow",
            config=public_config(config),
            # Else W&B uploads the command line, host, user and console output, which hold what the config must not.
            settings=wandb.Settings(x_disable_meta=True, console="off"),
        )

    def scalars(self, values: dict[str, float], step: int) -> None:
        # Each stage counts its own steps, W&B's own only grow.
        stage = next(iter(values)).partition("/")[0]
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/done")
        self._run.log(values | {f"{stage}/done": step})

    def table(self, name: str, rows: Sequence[Row]) -> None:
        table = self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({name: table})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """One MLflow run, found again by the run's URL."""

    def __init__(self, config: ExperimentConfig, store: RunStore) -> None:
        # Read at the import. By default a server that is away is asked for minutes, with which the stage would wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(config.tracking.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(config.tracking.project)
        # The hash of the URL: a location may hold names and secrets, and a tag is for all to see.
        key = sha256(store.url.encode())
        found = self._client.search_runs([number], f"tags.datadream_run = '{key}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
        else:
            self._run = self._client.create_run(number, tags={"datadream_run": key}, run_name=store.name).info.run_id
            for name, value in flatten(public_config(config)).items():
                self._client.log_param(self._run, name, value)

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def table(self, name: str, rows: Sequence[Row]) -> None:
        shown = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_dict(self._run, shown, f"{name}.json")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
