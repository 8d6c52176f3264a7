"""One run: where it lies, its config, its photos and its plan. A run of its own, or one cell of a table."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from datadream.config import ExperimentConfig
from datadream.data.datasets import Dataset, open_dataset
from datadream.data.few_shot import FewShotSet, add_classes, sample_shots
from datadream.data.texts import with_texts
from datadream.hashing import spec_hash
from datadream.methods import Plan, make_plan
from datadream.methods.chunks import Chunk, plan_hash, split_into_chunks
from datadream.run.grid import table_cells
from datadream.run.layout import DATASET, FEW_SHOT, DatasetMarker
from datadream.run.store import RunStore


class Cell:
    """One run. Nothing is read before it is asked for, and then once."""

    def __init__(self, config: ExperimentConfig, store: RunStore, images_of: Cell | None = None) -> None:
        """With `images_of`, this run trains on the first images of each class of another, which generates the same and
        more."""
        self.config, self.store = config, store
        self.images = images_of.store if images_of else images_store(store, config)
        """Where its synthetic images are published."""
        self._generates = self.images is store

    @cached_property
    def dataset(self) -> Dataset:
        """All photos that there are."""
        return open_dataset(self.config.data)

    @cached_property
    def few_shot(self) -> FewShotSet:
        """The run's real photos: the recorded shots, those of the run whose images it uses or that it
        extends, or newly sampled ones."""
        # What is recorded comes first: the source may have changed since, and must not change the run.
        for store in (self.store, self.images):
            if store.exists(FEW_SHOT):
                return FewShotSet.from_json(store.read_json(FEW_SHOT))
        config, data = self.config, self.config.data
        if config.extends is not None:
            old = FewShotSet.from_json(RunStore(config.extends).read_json(FEW_SHOT))
            return with_texts(add_classes(old, self.dataset, config.seed, data.prompt), data)
        return with_texts(sample_shots(self.dataset, data.n_shots, config.seed, data.prompt), data)

    @property
    def awaits_captions(self) -> bool:
        """Whether data.captioner is yet to write the captions of the shots."""
        return self.config.data.captioner is not None and bool(self.plan.images) and not self.few_shot.captions

    def caption(self, captions: dict[str, str]) -> None:
        """Take captions of the shots, by key, and plan anew: what was planned without them had class prompts."""
        self.few_shot = replace(self.few_shot, captions=captions)
        for name in ("plan", "chunks", "plan_hash"):
            self.__dict__.pop(name, None)

    @cached_property
    def plan(self) -> Plan:
        """What the method asks for; nothing where another run generates the images."""
        return make_plan(self.few_shot, self.config) if self._generates else Plan()

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All images that may be generated, cut into units of work."""
        return split_into_chunks(self.store.url, self.plan.images, self.config.generate.chunk_size)

    @cached_property
    def plan_hash(self) -> str:
        """What the run's images are known by; derives every seed, so it is asked for once (1.4 s for 500,000)."""
        if self.config.images_from is not None:
            dataset = DatasetMarker.from_json(self.images.read_json(DATASET))
            return dataset.plan or spec_hash(dataset.to_json())  # older versions did not name the plan
        return plan_hash(self.chunks, self.config)


def images_store(store: RunStore, config: ExperimentConfig) -> RunStore:
    """Where the images of a run are published: in its own folder or, where it uses another's, in that one's."""
    return RunStore(config.images_from) if config.images_from is not None else store


def where_cells_are(config: ExperimentConfig) -> str:
    """A sentence for whoever looks in a table's own folder for what its runs have; empty for other runs."""
    return " A table of runs has them in the folders of its cells/." if config.grid.on else ""


def cells_of(config: ExperimentConfig, store: RunStore) -> list[Cell]:
    """The run itself, or with `config.grid` the table's runs in its sub-folders."""
    if not config.grid.on:
        return [Cell(config, store)]
    made: dict[str | None, Cell] = {}
    for entry in table_cells(config):
        made[entry.name] = Cell(entry.config, store.child(f"cells/{entry.name}"), made.get(entry.drawn_by))
    return list(made.values())
