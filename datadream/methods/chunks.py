"""Cut a plan's images into chunks: the unit of work, retry and commit of generation; and know them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter

from datadream.config import ExperimentConfig
from datadream.methods.base import ImageRequest
from datadream.run.layout import CHUNKS, DATASET
from datadream.run.store import RunStore, spec_hash

DRAWN_PLAN = "stages/generate-plan.json"
"""Which plan a run's chunks belong to."""
_request_values = attrgetter(*(field.name for field in fields(ImageRequest)))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images that are drawn and committed together."""

    run_url: str
    chunk_id: str
    requests: tuple[ImageRequest, ...]

    @property
    def file(self) -> str:
        return f"{CHUNKS}/{self.chunk_id}.parquet"

    @property
    def marker(self) -> str:
        return f"{CHUNKS}/{self.chunk_id}.json"

    @property
    def adapter_ids(self) -> tuple[str, ...]:
        """The adapters that its images share."""
        return tuple(adapter_id for adapter_id, _ in self.requests[0].adapters)


def split_into_chunks(run_url: str, images: Sequence[ImageRequest], chunk_size: int) -> list[Chunk]:
    """Chunks of at most `chunk_size` requests that share class, adapters, prompt and strength, in the plan's order."""
    chunks = []
    for (label, *_), group in groupby(
        images, key=lambda r: (r.label, r.adapters, r.prompt, r.strength, r.source_key is None)
    ):
        members = list(group)
        for start in range(0, len(members), chunk_size):
            part = tuple(members[start : start + chunk_size])
            chunks.append(Chunk(run_url, f"{label:05d}-{part[0].index:06d}", part))
    return chunks


def first_chunks(chunks: Iterable[Chunk], wanted: Sequence[int]) -> list[Chunk]:
    """Of each class the first chunks that together hold `wanted[label]` images, or all where these are too few."""
    held = [0] * len(wanted)
    found = []
    for chunk in chunks:
        label = chunk.requests[0].label
        if held[label] < wanted[label]:
            held[label] += len(chunk.requests)
            found.append(chunk)
    return found


def n_images(chunks: Iterable[Chunk]) -> int:
    """Images of all chunks."""
    return sum(len(chunk.requests) for chunk in chunks)


def plan_hash(chunks: Iterable[Chunk], config: ExperimentConfig) -> str:
    """Hash of what makes the images: every request, how they are cut, and the settings of the generator."""
    cut = [(chunk.chunk_id, spec_hash([_request_values(request) for request in chunk.requests])) for chunk in chunks]
    # Without defaults: a knob that a later version adds must not turn an old run into another.
    settings = config.model_dump(mode="json", include={"diffusion", "generate"}, exclude_defaults=True)
    settings.get("generate", {}).pop("batch_size", None)  # changes no image
    return spec_hash([settings, cut])


def claim_run(store: RunStore, chunks: Iterable[Chunk], config: ExperimentConfig) -> None:
    """Record that the run's chunks and dataset are of this plan.

    Raises ValueError when those that are there are of another.
    """
    ours = plan_hash(chunks, config)
    for name, what in ((DRAWN_PLAN, "chunks"), (DATASET, "dataset")):
        theirs = store.read_json(name).get("plan", ours) if store.exists(name) else ours
        if theirs != ours:
            raise ValueError(
                f"run {store.url!r} holds a {what} folder of other images (plan {theirs[:8]} there, {ours[:8]} now). "
                f"Use another --run, or move {CHUNKS}/, dataset/ and {DRAWN_PLAN} away."
            )
    if not store.exists(DRAWN_PLAN):
        store.write_json(DRAWN_PLAN, {"plan": ours})
