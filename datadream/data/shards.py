"""Image shards that other people's readers understand: Parquet and WebDataset, the same bytes for the same images.

Parquet: `image` struct {bytes, path} and `label` with the Hugging Face feature metadata that makes `datasets` decode
images and name classes. WebDataset: <key>.<format>, <key>.cls and <key>.json side by side in a tar with fixed times
and owners.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datadream.data.decode import IMAGE_SUFFIXES

# The Hub's viewer and streaming readers fetch whole row groups, so image data sets keep them small.
ROWS_PER_GROUP = 100
# Rows read at once from a stream: a whole row group would be a shard of full-size images in memory.
SMALL_BATCH = 64
SUFFIX = {"webp": "webp", "png": "png", "jpeg": "jpg"}
_ENCODER: dict[str, dict[str, Any]] = {
    # Measured on photos: lossless WebP at its fastest is 11 times cheaper than PNG and 13 % smaller.
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "quality": 0},
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
}


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One generated image and where it came from."""

    key: str
    """Unique name without dots."""
    image: bytes
    label: int
    provenance: dict[str, Any]


def encode_image(pixels: np.ndarray, image_format: str) -> bytes:
    """Encode uint8 pixels [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **_ENCODER[image_format])
    return buffer.getvalue()


def to_parquet(records: Sequence[ImageRecord], image_format: str, class_names: Sequence[str]) -> bytes:
    """A whole Parquet file."""
    columns = {
        "image": [{"bytes": record.image, "path": f"{record.key}.{SUFFIX[image_format]}"} for record in records],
        "label": [record.label for record in records],
        "provenance": [json.dumps(record.provenance, ensure_ascii=False) for record in records],
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(class_names)},
        "provenance": {"_type": "Value", "dtype": "string"},
    }
    # datasets ignores the metadata without a word unless these types match it exactly.
    fields = [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("label", pa.int64()),
        pa.field("provenance", pa.string()),
    ]
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    table, buffer = pa.table(columns, schema=schema), io.BytesIO()
    # Images are compressed already; page indexes let readers skip.
    pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP, compression="none", write_page_index=True)
    return buffer.getvalue()


def from_parquet(data: bytes) -> list[ImageRecord]:
    """Records of a file that `to_parquet` made."""
    return [
        ImageRecord(
            row["image"]["path"].rpartition(".")[0], row["image"]["bytes"], row["label"], json.loads(row["provenance"])
        )
        for row in pq.read_table(io.BytesIO(data)).to_pylist()
    ]


def to_webdataset(records: Sequence[ImageRecord], image_format: str, class_names: Sequence[str]) -> bytes:
    """A whole tar file; members of a record are adjacent."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            details = {"class_name": class_names[record.label], **record.provenance}
            members = {
                SUFFIX[image_format]: record.image,
                "cls": str(record.label).encode(),
                "json": json.dumps(details, ensure_ascii=False).encode(),
            }
            for suffix, data in members.items():
                # TarInfo's defaults: time 0, and no owner, so that the same images give the same bytes.
                info = tarfile.TarInfo(f"{record.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def from_webdataset(data: bytes) -> list[ImageRecord]:
    """Records of a file that `to_webdataset` made."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = content.read()
    records = []
    for key, files in found.items():
        label, details = int(files.pop("cls")), json.loads(files.pop("json"))
        del details["class_name"]
        (image,) = files.values()
        records.append(ImageRecord(key, image, label, details))
    return records


def stream_images(file: IO[bytes], dataset_format: str) -> Iterator[tuple[str, int, bytes]]:
    """Key, label and encoded image of each row of a shard, a few at a time; reads no further than it is asked to."""
    if dataset_format != "webdataset":
        for batch in pq.ParquetFile(file).iter_batches(SMALL_BATCH, columns=["image", "label"]):
            for row in batch.to_pylist():
                yield row["image"]["path"].rpartition(".")[0], row["label"], row["image"]["bytes"]
        return
    # Samples of a tar: files that share a key are neighbours, and come in any order within their sample.
    key, label, image = "", None, None
    # "r|" reads as a stream: a remote shard is not sought through, and its rest is not read.
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            stem, suffix = posixpath.splitext(member.name)
            if stem != key:
                key, label, image = stem, None, None
            content = tar.extractfile(member)
            if content is not None and suffix == ".cls":
                label = int(content.read())
            elif content is not None and suffix in IMAGE_SUFFIXES:
                image = content.read()
            if label is not None and image is not None:
                yield key, label, image
                label = image = None


def shard_name(dataset_format: str, index: int, count: int) -> str:
    """Path of a shard inside the dataset folder."""
    return f"data/train-{index:05d}-of-{count:05d}.parquet" if dataset_format == "parquet" else f"data/{index:06d}.tar"
