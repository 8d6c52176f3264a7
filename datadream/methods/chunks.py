"""Cut a plan's images into chunks: the unit of work, retry and commit of generation; and know them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datadream.config import ExperimentConfig
from datadream.hashing import spec_hash
from datadream.methods.base import ImageSeries

# Where chunks lie in a run's folder.
CHUNKS_FOLDER = "chunks"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images that are generated and committed together. Small to pickle: its requests are made where they are read."""

    run_url: str
    chunk_id: str
    requests: ImageSeries

    @property
    def label(self) -> int:
        return self.requests.label

    @property
    def file(self) -> str:
        return f"{CHUNKS_FOLDER}/{self.chunk_id}.parquet"

    @property
    def marker(self) -> str:
        return f"{CHUNKS_FOLDER}/{self.chunk_id}.json"

    @property
    def adapter_ids(self) -> tuple[str, ...]:
        """The adapters that its images share."""
        return tuple(adapter_id for adapter_id, _ in self.requests.adapters)


def split_into_chunks(run_url: str, images: Iterable[ImageSeries], chunk_size: int) -> list[Chunk]:
    """Chunks of at most `chunk_size` neighbours in a series, in the plan's order."""
    # Cut within a series, so that a chunk has one class and set of adapters: these are merged once for it.
    parts = (series[start : start + chunk_size] for series in images for start in range(0, len(series), chunk_size))
    return [Chunk(run_url, f"{part.label:05d}-{part.first_index:06d}", part) for part in parts]


def first_chunks(chunks: Iterable[Chunk], wanted: Sequence[int]) -> list[Chunk]:
    """Of each class the first chunks that together hold `wanted[label]` images, or all where these are too few."""
    held = [0] * len(wanted)
    found = []
    for chunk in chunks:
        if held[chunk.label] < wanted[chunk.label]:
            held[chunk.label] += len(chunk.requests)
            found.append(chunk)
    return found


def n_images(chunks: Iterable[Chunk]) -> int:
    """Images of all chunks."""
    return sum(len(chunk.requests) for chunk in chunks)


def plan_hash(chunks: Iterable[Chunk], config: ExperimentConfig) -> str:
    """Hash of what makes the images: every request, how they are cut, and the settings of the generator.

    It derives the seed of every image, one chunk after the other: seconds for half a million images, so ask once.
    """
    cut = [(chunk.chunk_id, spec_hash(list(chunk.requests.values()))) for chunk in chunks]
    # Without defaults: a knob that a later version adds must not turn an old run into another.
    settings = config.model_dump(mode="json", include={"diffusion", "generate"}, exclude_defaults=True)
    settings.get("generate", {}).pop("batch_size", None)  # changes no image
    return spec_hash([settings, cut])
