"""Candidates of our choice, committed as if samplers had generated them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from datadream.data.shards import ImageRecord, encode_image, to_parquet
from datadream.methods.chunks import Chunk
from datadream.run.store import RunStore


def commit_chunk(chunk: Chunk, images: Sequence[Image.Image]) -> None:
    """Write a chunk with these images."""
    records = [
        ImageRecord(
            f"{request.label:05d}_{request.index:06d}",
            encode_image(np.asarray(image), "webp"),
            request.label,
            {"seed": request.seed},
        )
        for request, image in zip(chunk.requests, images, strict=True)
    ]
    store = RunStore(chunk.run_url)
    store.write_bytes(chunk.file, to_parquet(records, "webp", ()))
    store.write_json(chunk.marker, {"n_images": len(records)})
