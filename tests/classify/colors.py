"""Noisy one-colour images, and the dataset that a run would publish of them."""

from __future__ import annotations

import io
import itertools
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datadream.run.store import RunStore

COLORS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def color_image(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> Image.Image:
    """One colour with so much noise that single pixels do not tell it."""
    pixels = np.array(COLORS[name]) + rng.normal(0, 40, (*shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def publish(
    store: RunStore, form: str = "parquet", n_per_class: int = 20, shards: int = 2, ragged: bool = False
) -> None:
    """Write a dataset of colour images and its marker, as generation would; `ragged` shards grow in size."""
    rng = np.random.default_rng(1)
    rows = [
        (f"{name}/{i:03d}", label, color_image(rng, name, (16, 16)))
        for i in range(n_per_class)
        for label, name in enumerate(COLORS)
    ]
    names, sizes, ends = [], [], [len(rows) * (shard + 1) ** 2 // shards**2 for shard in range(shards)]
    for shard, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        names.append(f"data/train-{shard:05d}-of-{shards:05d}.{'parquet' if form == 'parquet' else 'tar'}")
        write = parquet_shard if form == "parquet" else webdataset_shard
        data = write(rows[start:end] if ragged else rows[shard::shards])
        store.write_bytes(f"dataset/{names[-1]}", data)
        sizes.append(len(data))
    marker = {"format": form, "shards": names, "n_bytes": sizes, "n_images": len(rows), "class_names": list(COLORS)}
    store.write_json("dataset/dataset.json", marker)


def break_image(store: RunStore) -> str:
    """Replace an image of a published Parquet dataset by what is none; returns what it is called."""
    marker, name = store.read_json("dataset/dataset.json"), "red/007.png"
    shard = f"dataset/{marker['shards'][1]}"
    rows = pq.read_table(io.BytesIO(store.read_bytes(shard))).to_pylist()
    rows[7]["image"] = {"bytes": b"no image", "path": name}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    store.write_bytes(shard, buffer.getvalue())
    marker["n_bytes"][1] = len(buffer.getvalue())
    store.write_json("dataset/dataset.json", marker)
    return name


def parquet_shard(rows: list[tuple[str, int, Image.Image]]) -> bytes:
    table = pa.table(
        {
            "image": [{"bytes": encoded(image, "PNG"), "path": f"{key}.png"} for key, _, image in rows],
            "label": pa.array([label for _, label, _ in rows], pa.int64()),
            "prompt": ["a colour" for _ in rows],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def webdataset_shard(rows: list[tuple[str, int, Image.Image]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, label, image in rows:
            for suffix, data in (("webp", encoded(image, "WEBP")), ("cls", str(label).encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{key.replace('/', '-')}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, lossless=True)
    return buffer.getvalue()
