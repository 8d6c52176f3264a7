"""Over-generate candidates and select which are published: rejection sampling, spread over the cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from datadream.config import ExperimentConfig
from datadream.generate.select.features import FeatureEncoder, FeatureJob, feature_units
from datadream.generate.select.rejection_sampling import RejectionSampling, acceptance
from datadream.generate.stage import chunk_units, finish_units, generate_chunks
from datadream.methods.chunks import n_images
from datadream.run.cell import Cell
from datadream.run.layout import FAILED_FEATURES, SELECTION
from datadream.run.store import RunStore
from datadream.runtime.failures import Ledger, retried
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.progress import Facts, Listener, Reporter
from datadream.runtime.unit import Unit, pending
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def generate_and_select(
    store: RunStore,
    runs: Sequence[Cell],
    config: ExperimentConfig,
    workers: Workers,
    listeners: Sequence[Listener] = (),
) -> None:
    """Generate candidates of runs that are alike but for method, seed and shots, and commit which are to be published.

    Raises RuntimeError naming chunks that fail, or a run of which no candidate is accepted.
    """
    samplings = [RejectionSampling(run) for run in runs if run.chunks and not run.store.exists(SELECTION)]
    how = Mapped(load=_load_encoder, load_from=config, what="encoding")
    facts: Facts = {}
    while sum(sampling.propose() for sampling in samplings):  # not any(): all are to propose
        proposed = [chunk for sampling in samplings for chunk in sampling.proposed]
        generate_chunks(store, chunk_units(proposed), config, workers, listeners, facts)
        units: list[Unit[FeatureJob]] = []
        for sampling in samplings:
            units += feature_units(sampling.run.store.url, sampling.run.few_shot, sampling.proposed)
        # Shots and prompts are encoded once; of the candidates, those that this attempt added.
        missing, total = pending(units), n_images(proposed)
        ledger: Ledger[tuple[str, str]] = Ledger()
        done = total - sum(unit.size for unit in missing)
        with Reporter("select", total, "image", listeners, done) as reporter:
            # Ray Data takes no empty list.
            for encoded in run_mapped(store, missing, how, workers, ledger) if missing else ():
                reporter.update(reporter.done + encoded.unit.size, failed=len(ledger.given_up))
            # What could be encoded stays for the next start.
            finish_units(store, FAILED_FEATURES, missing, ledger, "encoding {} of {} chunks, shots and prompts")
            for sampling in samplings:
                sampling.decide()
            facts = acceptance(samplings)
            reporter.update(total, "", 0, **facts)
        log.info("select: of %d candidates %s", total, ", ".join(f"{name} {n}" for name, n in facts.items()))
    for sampling in samplings:
        sampling.commit()


def _load_encoder(config: ExperimentConfig, device: torch.device | None) -> Callable[[Unit[FeatureJob]], None]:
    assert device is not None
    return retried(lambda: FeatureEncoder(config, device), "loading CLIP").commit
