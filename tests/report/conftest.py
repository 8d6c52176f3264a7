"""Fabricated runs for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datadream.config import ExperimentConfig
from datadream.run.store import RunStore
from tests.report.fabricate import (
    CLASS_NAMES,
    write_adapters,
    write_dataset,
    write_few_shot,
    write_photos,
    write_setting,
    write_stage_seconds,
)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[RunStore, ExperimentConfig]]:
    """Make a run folder with the given test accuracies by setting."""
    photos = tmp_path / "photos"
    write_photos(photos)

    def make(
        name: str,
        top1: dict[str, float | None],
        *,
        dataset: str | None = "parquet",
        n_adapters: int = 3,
        n_classes: int = len(CLASS_NAMES),
        **changes: object,
    ) -> tuple[RunStore, ExperimentConfig]:
        knobs = {
            "data.source": str(photos),
            "data.n_shots": 4,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        config = ExperimentConfig().updated(knobs)
        store = RunStore(str(tmp_path / name))
        store.write_json("config.json", {"config": config.model_dump(mode="json"), "versions": {"datadream": "0.1.0"}})
        class_names = CLASS_NAMES + tuple(f"class {i}" for i in range(len(CLASS_NAMES), n_classes))
        write_few_shot(store, class_names[:3], config.data.n_shots)
        if dataset:
            write_dataset(store, dataset, 3)
            write_adapters(store, n_adapters)
        for setting, accuracy in top1.items():
            write_setting(store, setting, accuracy, class_names)
        write_stage_seconds(store, {"adapt": 12.25, "generate": 95.0, "classify": 7384.0})
        return store, config

    return make
