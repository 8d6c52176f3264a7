"""Cut a plan's images into chunks: the unit of work, retry and commit of generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from datadream.methods.base import ImageRequest
from datadream.run_store import CHUNKS


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
