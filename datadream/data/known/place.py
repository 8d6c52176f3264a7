"""A data set's folder as it was unpacked, at any fsspec URL."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec

from datadream.data.decode import IMAGE_SUFFIXES


@dataclass(slots=True)
class Place:
    """The folder of one data set. Paths count from it; each folder is listed once, however often it is asked for."""

    fs: fsspec.AbstractFileSystem
    root: str
    photos: str = ""
    """The folder inside that holds the photos, or folders of them."""
    _listed: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)

    @classmethod
    def find(
        cls, fs: fsspec.AbstractFileSystem, root: str, folders: Sequence[str], photos: Sequence[str]
    ) -> Place | None:
        """The folder with one of the folders `photos` in it: `root`, or one of the `folders` below it."""
        for inside in ("", *folders):
            place = posixpath.normpath(posixpath.join(root, inside))
            for name in photos:
                if fs.isdir(posixpath.join(place, name)):
                    return cls(fs, place, name)
        return None

    def has(self, path: str) -> bool:
        """Whether a file is there."""
        return self.fs.isfile(self._whole(path))

    def first(self, *paths: str) -> str:
        """The first of these files that is there; raises FileNotFoundError naming them where none is."""
        for path in paths:
            if self.has(path):
                return path
        raise FileNotFoundError(f"{' or '.join(paths)} is not in {self.root!r}")

    def text(self, *paths: str) -> str:
        """The first of these files that is there."""
        path = self.first(*paths)
        try:
            return self.fs.cat_file(self._whole(path)).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not in UTF-8") from None

    def json(self, path: str) -> Any:
        """A file of JSON; raises FileNotFoundError, or ValueError where it holds something else."""
        try:
            return json.loads(self.text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error})") from None

    def mat(self, *paths: str) -> dict[str, Any]:
        """The variables of the first of these MATLAB files that is there, without axes of length 1."""
        from scipy.io import loadmat  # takes a second to import, and few need it

        path = self.first(*paths)
        try:
            return loadmat(io.BytesIO(self.fs.cat_file(self._whole(path))), squeeze_me=True)
        except Exception as error:  # of scipy, of zlib and of struct
            raise ValueError(f"{path} is no MATLAB file ({error})") from None

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder, sorted; none where it is not there."""
        return self._list(path)[0]

    def images(self, path: str) -> list[str]:
        """Names of the photos in a folder, sorted; none where it is not there."""
        return self._list(path)[1]

    def _list(self, path: str) -> tuple[list[str], list[str]]:
        if path not in self._listed:
            folders, images = [], []
            for entry in self.fs.ls(self._whole(path), detail=True) if self.fs.isdir(self._whole(path)) else ():
                name = posixpath.basename(entry["name"].rstrip("/"))
                if name.startswith("."):
                    continue
                if name.lower().endswith(IMAGE_SUFFIXES):
                    images.append(name)
                # A linked folder, too: see image_folder._is_folder.
                elif entry["type"] == "directory" or (entry["type"] != "file" and self.fs.isdir(entry["name"])):
                    folders.append(name)
            self._listed[path] = sorted(folders), sorted(images)
        return self._listed[path]

    def _whole(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.root, path))
