"""Captions of the shots by `data.captioner`, before the plan of a run is final: a photo is a unit.

The runs of a table share them: a photo is captioned once, whatever the methods, seeds and numbers of shots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.generate.stage import finish_units
from datadream.run.cell import Cell
from datadream.run.layout import FAILED_CAPTIONS, CaptionRecord, caption_marker
from datadream.run.store import RunStore
from datadream.runtime.failures import Ledger, retried
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.progress import Listener, Reporter
from datadream.runtime.unit import Unit, pending
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Shot:
    """A photo, and the name of its class."""

    key: str
    name: str


def caption_shots(
    store: RunStore,
    cells: Sequence[Cell],
    config: ExperimentConfig,
    workers: Workers,
    listeners: Sequence[Listener] = (),
) -> None:
    """Give the shots of runs that ask for captions, and have none yet, those of `data.captioner`; `store` keeps them.

    Raises RuntimeError naming photos that could not be captioned, after all others were.
    """
    waiting = [cell for cell in cells if cell.awaits_captions]
    shots = {
        photo.key: Shot(photo.key, cell.few_shot.class_names[photo.label])
        for cell in waiting
        for photo in cell.few_shot.photos
    }
    units = [
        Unit(run_url=store.url, name=f"caption of {key!r}", marker=caption_marker(key), payload=shot)
        for key, shot in shots.items()
    ]
    if missing := pending(units):
        how = Mapped(load=_load_captioner, load_from=config, what="captioning")
        ledger: Ledger[tuple[str, str]] = Ledger()
        with Reporter("caption", len(units), "photo", listeners, len(units) - len(missing)) as reporter:
            for _ in run_mapped(store, missing, how, workers, ledger):
                reporter.update(reporter.done + 1, failed=len(ledger.given_up))
        finish_units(store, FAILED_CAPTIONS, missing, ledger, "captioning {} of {} photos")
    # A round trip each where they lie in an object store.
    with ThreadPoolExecutor() as threads:
        records = threads.map(lambda unit: CaptionRecord.from_json(store.read_json(unit.marker)), units)
        captions = {record.photo: record.caption for record in records}
    if captions:
        # Those of a file are looked at before any work; these came just now.
        from datadream.models.diffusion.prompts import check_texts

        check_texts(config.diffusion.model, config.diffusion.revision, set(captions.values()))
    for cell in waiting:
        cell.caption({photo.key: captions[photo.key] for photo in cell.few_shot.photos})


def _load_captioner(config: ExperimentConfig, device: torch.device | None) -> Callable[[Unit[Shot]], None]:
    # Imported here, not above: it imports torch, and the driver imports this module as well.
    from datadream.models.captioner import Captioner

    assert device is not None
    assert config.data.captioner is not None
    model = config.data.captioner
    captioner = retried(lambda: Captioner(model, device), "loading data.captioner")
    source = open_source(config.data.source, config.data.background)

    def caption(unit: Unit[Shot]) -> None:
        shot = unit.payload
        photo = retried(lambda: source.read(shot.key), f"reading photo {shot.key!r}")
        record = CaptionRecord(photo=shot.key, caption=captioner.caption(photo, shot.name))
        retried(lambda: unit.store.write_json(unit.marker, record.to_json()), f"{unit.name}: writing")

    return caption
