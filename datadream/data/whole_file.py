"""Reading a file of any file system whole, in one request."""

from __future__ import annotations

import inspect

from fsspec import AbstractFileSystem


def read_whole(fs: AbstractFileSystem, path: str) -> bytes:
    """What is in a file that fits the memory, such as a photo; raises what the file system raises, which is mostly
    FileNotFoundError where there is none."""
    # s3fs from 2026 on asks for the size first, to get large files in parts: twice the requests, and twice the wait.
    takes = inspect.signature(fs._cat_file).parameters if hasattr(fs, "_cat_file") else ()
    return fs.cat_file(path, max_concurrency=1) if "max_concurrency" in takes else fs.cat_file(path)
