"""The published synthetic images as a Ray Data stream of decoded squares."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext

from datadream.classify.squares import decode_squares
from datadream.run_store import RunStore

FOLDER = "dataset"
MARKER = f"{FOLDER}/dataset.json"
ENCODINGS = ("webp", "png", "jpg")
"""Names under which a WebDataset sample holds its image."""
ROWS_PER_DECODE = 256


@dataclass(frozen=True, slots=True)
class Published:
    """Rows of image (uint8 [3, size, size]), label and key; `key` is unique and gives the rows an order."""

    rows: ray.data.Dataset
    n: int
    size: int

    @property
    def n_bytes(self) -> int:
        """Size of all decoded images."""
        return self.n * 3 * self.size**2


@contextmanager
def quiet_ordered_data() -> Iterator[None]:
    """Ray Data as this module needs it: rows in the order of the shards, no progress bars; then as it was before."""
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = (
        context.enable_progress_bars,
        context.use_datasource_v2,
        context.execution_options.preserve_order,
        logger.level,
    )
    context.enable_progress_bars = False
    # Ray 2.60's new reader lists files from threads that import fsspec's HTTP file system at the same time: without
    # aiohttp that now and then fails with "cannot import name 'HTTPFileSystem'". It also joins small shards to a
    # block.
    context.use_datasource_v2 = False
    context.execution_options.preserve_order = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.use_datasource_v2, context.execution_options.preserve_order, level = (
            before
        )
        logger.setLevel(level)


def open_published(store: RunStore, size: int) -> Published:
    """The run's dataset, to be decoded to squares of `size` pixels; nothing is read yet.

    Raises ValueError when nothing has been published.
    """
    if not store.exists(MARKER):
        raise ValueError(
            f"run {store.url!r} has no synthetic images to train on: {MARKER} is missing. Run generate first."
        )
    marker = store.read_json(MARKER)
    if not marker["n_images"]:
        raise ValueError(f"run {store.url!r}: the published dataset is empty. Run generate again.")
    paths = [store.path(posixpath.join(FOLDER, shard)) for shard in marker["shards"]]
    if marker["format"] == "parquet":
        encoded, decode = (
            ray.data.read_parquet(paths, filesystem=store.fs, columns=["image", "label"]),
            _decode_parquet,
        )
    else:
        suffixes = [*(f"*.{name}" for name in ENCODINGS), "*.cls"]
        encoded, decode = (
            ray.data.read_webdataset(paths, filesystem=store.fs, decoder=None, suffixes=suffixes),
            _decode_webdataset,
        )
    rows = encoded.map_batches(decode, fn_kwargs={"size": size}, batch_size=ROWS_PER_DECODE, batch_format="pyarrow")
    return Published(rows, marker["n_images"], size)


def _decode_parquet(table: pa.Table, size: int) -> dict[str, np.ndarray]:
    image = table["image"].combine_chunks()
    return {
        "image": decode_squares(image.field("bytes").to_pylist(), size),
        "label": table["label"].to_numpy().astype(np.int64),
        "key": np.array(image.field("path").to_pylist()),
    }


def _decode_webdataset(table: pa.Table, size: int) -> dict[str, Any]:
    encoding = next(name for name in ENCODINGS if name in table.column_names)
    return {
        "image": decode_squares(table[encoding].to_pylist(), size),
        "label": np.array([int(label) for label in table["cls"].to_pylist()]),
        "key": np.array(table["__key__"].to_pylist()),
    }
