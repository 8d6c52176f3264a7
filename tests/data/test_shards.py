"""Other people's readers read our shards."""

import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datadream.data.shards import ImageRecord, encode_image, from_parquet, to_parquet, to_webdataset

NAMES = ("cat", "dog")
ADAPTERS = [
    {"name": "class-00000", "weight": 0.5, "sha256": "ab"},
    {"name": "class-00001", "weight": 0.5, "sha256": "cd"},
]


def records(image_format: str = "webp", n: int = 5) -> list[ImageRecord]:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 24, 32, 3), dtype=np.uint8)
    return [
        ImageRecord(
            f"{i % 2:05d}_{i:06d}",
            encode_image(image, image_format),
            i % 2,
            {"prompt": "a photo", "adapters": ADAPTERS},
        )
        for i, image in enumerate(pixels)
    ]


@pytest.mark.parametrize(("image_format", "tolerance"), [("webp", 0), ("png", 0), ("jpeg", 40)])
def test_encodings(image_format, tolerance):
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)))
    decoded = np.asarray(Image.open(io.BytesIO(encode_image(pixels, image_format))).convert("RGB"))
    assert np.abs(decoded.astype(int) - pixels).max() <= tolerance


def test_parquet_round_trip_and_stable_bytes():
    data = to_parquet(records(), "webp", NAMES)
    assert from_parquet(data) == records()
    assert data == to_parquet(records(), "webp", NAMES)


def test_datasets_decodes_parquet_with_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(to_parquet(records(), "webp", NAMES))
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == list(NAMES)
    assert [row["label"] for row in loaded] == [0, 1, 0, 1, 0]
    assert loaded[0]["image"].size == (32, 24)


def test_webdataset_reads_tar_and_bytes_are_stable(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    data = to_webdataset(records("jpeg"), "jpeg", NAMES)
    assert data == to_webdataset(records("jpeg"), "jpeg", NAMES)
    path = tmp_path / "000000.tar"
    path.write_bytes(data)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [record.key for record in records()]
    assert [sample["cls"] for sample in samples] == [0, 1, 0, 1, 0]
    assert samples[1]["json"] == {"class_name": "dog", "prompt": "a photo", "adapters": ADAPTERS}
    assert samples[0]["jpg"].size == (32, 24)


def test_datasets_reads_tar_with_provenance(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "000000.tar"
    path.write_bytes(to_webdataset(records(), "webp", NAMES))
    loaded = datasets.load_dataset("webdataset", data_files=[str(path)], split="train", cache_dir=str(tmp_path / "c"))
    assert [row["cls"] for row in loaded] == [0, 1, 0, 1, 0]
    assert loaded[1]["json"] == {"class_name": "dog", "prompt": "a photo", "adapters": ADAPTERS}
    assert loaded[1]["webp"].size == (32, 24)


def test_members_are_adjacent_and_know_no_time_or_owner():
    with tarfile.open(fileobj=io.BytesIO(to_webdataset(records(), "webp", NAMES))) as tar:
        members = tar.getmembers()
    names = [f"{record.key}.{suffix}" for record in records() for suffix in ("webp", "cls", "json")]
    assert [member.name for member in members] == names
    assert {(member.mtime, member.uid, member.gid) for member in members} == {(0, 0, 0)}


def test_row_groups_are_small():
    rows = pq.ParquetFile(io.BytesIO(to_parquet(records(n=250), "webp", NAMES))).metadata
    assert [rows.row_group(i).num_rows for i in range(rows.num_row_groups)] == [100, 100, 50]
