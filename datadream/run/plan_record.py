"""The record of the plan that a run's images belong to: a folder never mixes the images of two plans."""

from __future__ import annotations

from datadream.run.layout import CHUNKS, DATASET, GENERATE_PLAN, GeneratePlan
from datadream.run.store import RunStore


def check_plan(store: RunStore, plan: str) -> None:
    """Raises ValueError when the chunks or the dataset that are there are of a plan with another hash."""
    for name, what in ((GENERATE_PLAN, "chunks"), (DATASET, "dataset")):
        # Datasets of versions that recorded no plan are taken for this one's.
        theirs = store.read_json(name).get("plan", plan) if store.exists(name) else plan
        if theirs != plan:
            raise ValueError(
                f"run {store.url!r} holds a {what} folder of other images (plan {theirs[:8]} there, {plan[:8]} now). "
                f"Use another --run, or move {CHUNKS}/, dataset/ and {GENERATE_PLAN} away."
            )


def record_plan(store: RunStore, plan: str) -> None:
    """Say whose images the folder holds from now on."""
    if not store.exists(GENERATE_PLAN):
        store.write_json(GENERATE_PLAN, GeneratePlan(plan=plan).to_json())
