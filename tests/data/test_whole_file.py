"""A file is read in one request, from any file system."""

import fsspec
import pytest

from datadream.data.whole_file import read_whole
from tests.object_store import object_store


def test_an_object_store_is_asked_once():
    with object_store() as server:
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        for name, data in (("photo.jpg", b"pixels"), ("empty.jpg", b"")):
            fs.pipe_file(f"{server.url}/{name}", data)
            before = server.answered
            assert read_whole(fs, f"{server.url}/{name}") == data
            assert server.answered == before + 1
        with pytest.raises(FileNotFoundError):
            read_whole(fs, f"{server.url}/nothing.jpg")


def test_other_file_systems_know_no_such_choice(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"pixels")
    assert read_whole(fsspec.filesystem("file"), str(tmp_path / "photo.jpg")) == b"pixels"
    fsspec.filesystem("memory").pipe_file("/whole/photo.jpg", b"pixels")
    assert read_whole(fsspec.filesystem("memory"), "/whole/photo.jpg") == b"pixels"
