"""Which pictures the page shows, and how they are stored in it."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from datadream.report.pictures import (
    GENERATED_PER_CLASS,
    MAX_CLASSES,
    REAL_PER_CLASS,
    THUMBNAIL_PIXELS,
    class_pictures,
    thumbnail,
)
from tests.report.fabricate import write_few_shot


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_each_class_shows_its_own_shots_and_images(make_run, kind):
    pictures, n_classes = class_pictures([make_run("run", {}, dataset=kind)])
    assert n_classes == 3
    for label, each in enumerate(pictures):
        assert len(each.real) == REAL_PER_CLASS
        assert len(each.generated["datadream-cls"]) == GENERATED_PER_CLASS
        reds = {decode(picture.uri).getpixel((0, 0))[0] for picture in each.real + each.generated["datadream-cls"]}
        assert reds == {40 + 60 * label}


def test_members_of_a_tar_that_are_called_like_files_elsewhere_write_none(make_run, tmp_path):
    run = make_run("run", {}, dataset="webdataset")
    for shard in Path(run[0].root).rglob("*.tar"):
        buffer = io.BytesIO()
        with tarfile.open(shard) as old, tarfile.open(fileobj=buffer, mode="w") as new:
            for member in old:
                content = old.extractfile(member)
                member.name = f"../../../evil/{member.name}"
                new.addfile(member, content)
        shard.write_bytes(buffer.getvalue())
    before = set(tmp_path.rglob("*"))
    pictures, _ = class_pictures([run])
    assert len(pictures[0].generated["datadream-cls"]) == GENERATED_PER_CLASS
    assert set(tmp_path.rglob("*")) == before
    assert not [path for path in tmp_path.parents if (path / "evil").exists()]


def test_methods_stand_side_by_side(make_run):
    cells = [make_run(method, {}, method=method) for method in ("datadream-cls", "is-synth")]
    pictures, _ = class_pictures(cells)
    assert list(pictures[0].generated) == ["datadream-cls", "is-synth"]


def test_a_run_without_images_shows_its_shots(make_run):
    pictures, _ = class_pictures([make_run("run", {}, dataset=None, method="none")])
    assert [(len(each.real), each.generated) for each in pictures] == [(REAL_PER_CLASS, {})] * 3


def test_photos_that_are_gone_leave_the_generated_images(make_run):
    store, config = make_run("run", {})
    pictures, _ = class_pictures([(store, config.updated({"data.source": "/nowhere"}))])
    assert pictures[0].real == []
    assert len(pictures[0].generated["datadream-cls"]) == GENERATED_PER_CLASS


def test_many_classes_are_cut(make_run):
    store, config = make_run("run", {}, dataset=None)
    write_few_shot(store, ("cat",) * 50, 4)
    pictures, n_classes = class_pictures([(store, config)])
    assert (len(pictures), n_classes) == (MAX_CLASSES, 50)


def test_small_images_keep_every_pixel_and_large_ones_are_reduced():
    small = thumbnail(Image.new("RGB", (32, 32), (1, 2, 3)))
    assert small.pixelated
    assert decode(small.uri).getpixel((5, 5)) == (1, 2, 3)
    large = thumbnail(Image.new("RGB", (512, 256)))
    assert not large.pixelated
    assert decode(large.uri).size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2)
