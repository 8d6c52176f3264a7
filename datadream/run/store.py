"""A run's folder at any fsspec URL: atomic writes and commit markers.

Everything is written under a temporary name and renamed, or put in one object-store request, and only then announced
by its JSON marker. Readers trust markers, never a listing, so nothing half-written is ever read. Temporaries of killed
writers are swept by whoever holds the run's lock (`datadream.run.lock`), and by nobody else.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from datadream.data.whole_file import read_whole
from datadream.hashing import sha256
from datadream.run.layout import adapter_marker, adapter_weights

log = logging.getLogger(__name__)

TEMPORARY = ".tmp"
"""How the hidden files end that writers rename when they are whole."""

CREATION_SECONDS = 2.0
"""How long a file that is being created may stay incomplete until its creator counts as killed.

One small write takes milliseconds; on a loaded network folder some hundred.
"""


S3_ATTEMPTS = 7
"""Of botocore's, which are five requests each: a store that is away is waited for for 30 to 90 s."""


class RunStore:
    """Files of one run, by paths relative to its URL."""

    def __init__(self, url: str) -> None:
        """Raises ValueError when no file system serves the URL's scheme."""
        try:
            # Object stores' clients remember listings, in which what other processes commit would be missing.
            self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"run URL {url!r} cannot be opened: {error}. Use a folder or an installed fsspec scheme."
            ) from None
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local:  # fsspec leaves the dots in `../runs`
            self.root = posixpath.normpath(self.root)
        if "s3" in self.fs.protocol:
            import s3fs.core

            # s3fs asks again by itself where the store answers with errors or falls silent; where nobody listens, as
            # while a store starts again, it has to be told to.
            with suppress(AttributeError):  # older versions have none
                s3fs.core.set_custom_error_handler(_is_to_try_again)
            # All stores of a process share the file system, and another one may have been given up
            # (`limit_attempts`).
            vars(self.fs).setdefault("retries", S3_ATTEMPTS)
        self.url = url if "://" in url else self.root

    def path(self, name: str) -> str:
        """Full path of a file, without its scheme; raises ValueError for a name that leads out of the run.

        Names may come from files of a run that a stranger made, such as the list of its shards.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} leads out of run {self.url!r}. Do not use a run that names such a file.")
        return posixpath.join(self.root, name)

    def url_of(self, name: str) -> str:
        """Where a file is, as users may give it: its URL, or its path where that is local."""
        return posixpath.join(self.url, name)

    def child(self, name: str) -> RunStore:
        """The store of a sub-folder."""
        return RunStore(posixpath.join(self.url, name))

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return posixpath.basename(self.root.rstrip("/"))

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def read_bytes(self, name: str) -> bytes:
        return read_whole(self.fs, self.path(name))

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file atomically and durably: readers see the old bytes or the new ones, also after a crash."""
        path = self.path(name)
        # One request of an object store is atomic; its "rename" would be a copy and a removal.
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        folder, base = posixpath.split(path)
        os.makedirs(folder, exist_ok=True)
        temporary = posixpath.join(folder, f".{base}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            with open(temporary, "wb") as file:
                _write_through(file, data)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C too: what is left lies there until the next driver sweeps
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)

    def create_bytes(self, name: str, data: bytes) -> None:
        """Write a file that must not be there; of several creators one succeeds, also where there are no hard links.

        On local folders others may see the file empty for a moment, and for good if its creator is killed.
        Raises FileExistsError when the file is there.
        """
        path = self.path(name)
        if not self.is_local:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except Exception as error:  # servers word "it is there" in ways that clients do not always translate
                if isinstance(error, FileExistsError) or not self.fs.exists(path):
                    raise
                raise FileExistsError(path) from error
            return
        folder = posixpath.dirname(path)
        os.makedirs(folder, exist_ok=True)
        with open(path, "xb") as file:
            try:
                _write_through(file, data)
            except BaseException:
                os.unlink(path)
                raise
        _sync_folder(folder)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, _encode_json(value))

    def write_json_once(self, name: str, value: Any) -> Any:
        """Write an object unless the file is there; returns what it then holds, whoever came first."""
        data = _encode_json(value)
        while True:
            with suppress(FileExistsError):
                self.create_bytes(name, data)
            written = self.read_json_once(name)
            if written is not None:
                return written
            if self.replace_bytes(name, data, lambda: self._is_cut_off(name)):  # its creator was killed
                # Others may be replacing it too; after the pause all of them read the same bytes.
                time.sleep(CREATION_SECONDS)

    def read_json_once(self, name: str) -> Any | None:
        """What `write_json_once` wrote; None when there is nothing, or only what a killed creator left.

        A plain `read_json` could meet the moment in which the file is there and still empty.
        """
        deadline = time.monotonic() + CREATION_SECONDS
        while True:
            try:
                return self.read_json(name)
            except FileNotFoundError:
                return None
            except ValueError:  # not JSON yet
                if time.monotonic() > deadline:
                    return None
            time.sleep(0.02)

    def _is_cut_off(self, name: str) -> bool:
        """Whether a file is there and does not hold JSON."""
        try:
            self.read_json(name)
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return False

    def replace_bytes(self, name: str, data: bytes, is_unchanged: Callable[[], bool]) -> bool:
        """Replace what a dead writer left if `is_unchanged` still says so; returns whether.

        Several may do so at once, because file systems have no compare-and-swap in common. Between the look and the
        rename lies nothing slow, so who pauses and reads again sees whose bytes count.
        """
        folder, base = posixpath.split(name)
        temporary = posixpath.join(folder, f".{base}.{uuid.uuid4().hex}{TEMPORARY}")
        self.write_bytes(temporary, data)
        try:
            if is_unchanged():
                self.move(temporary, name)
                return True
            return False
        finally:
            with suppress(FileNotFoundError):
                self.remove(temporary)

    def remove(self, name: str) -> None:
        self.fs.rm_file(self.path(name))

    def move(self, name: str, new_name: str) -> None:
        self.fs.mv(self.path(name), self.path(new_name))

    def files(self, folder: str) -> set[str]:
        """Paths of all files in a folder and below, by one listing."""
        return {posixpath.relpath(path, self.root) for path in self.fs.find(self.path(folder))}

    def markers(self, folder: str) -> set[str]:
        """Stems of the JSON markers directly in a folder."""
        if not self.exists(folder):
            return set()
        names = (posixpath.basename(path) for path in self.fs.ls(self.path(folder), detail=False))
        return {name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")}

    def end_uploads(self) -> None:
        """End the uploads of many parts that killed writers began: an S3 store keeps what came, and charges for it.

        Others that are known to fsspec forget such parts by themselves, within days.
        """
        if "s3" not in self.fs.protocol:
            return
        bucket, folder, _ = self.fs.split_path(self.root)
        # No prefix of a neighbour's: run/ and not run, which begins run-2 as well.
        found = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/" if folder else "")
        for upload in found.get("Uploads", ()):
            with suppress(FileNotFoundError):  # it ended meanwhile
                self.fs.call_s3(
                    "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )

    def check_writable(self) -> None:
        """Raises ValueError when the run cannot be written here; leaves nothing behind."""
        existing = self.root
        # Object stores have no folders that would be left behind.
        while self.is_local and not self.fs.exists(existing) and posixpath.dirname(existing) != existing:
            existing = posixpath.dirname(existing)
        probe = posixpath.join(existing, f".datadream-{uuid.uuid4().hex}{TEMPORARY}")
        try:
            self.fs.pipe_file(probe, b"")
            self.fs.rm_file(probe)
        except Exception as error:
            raise ValueError(
                f"run URL {self.url!r} cannot be written: {str(error) or type(error).__name__}. "
                "Choose a folder you may write to with --run."
            ) from None


def read_adapter(store: RunStore, adapter_id: str) -> bytes:
    """The weights of a trained adapter; raises ValueError when it is not trained, or not what was written."""
    if not store.exists(adapter_marker(adapter_id)):
        raise ValueError(f"adapter {adapter_id!r} is not trained. Run adapt first.")
    weights = store.read_bytes(adapter_weights(adapter_id))
    if sha256(weights) != adapter_sha256(store, adapter_id):
        raise ValueError(f"adapter {adapter_id!r} is not what was written. Run adapt, which trains it again.")
    return weights


def adapter_sha256(store: RunStore, adapter_id: str) -> str:
    """Hash of a trained adapter's weights file."""
    return store.read_json(adapter_marker(adapter_id))["weights_sha256"]


def limit_attempts(store: RunStore, attempts: int = S3_ATTEMPTS) -> None:
    """How often this process asks an S3 store that does not answer for each thing."""
    if "s3" in store.fs.protocol:
        store.fs.retries = attempts


def _is_to_try_again(error: Exception) -> bool:
    from botocore.exceptions import ConnectionError

    is_passing = isinstance(error, ConnectionError)
    if is_passing:
        log.warning("%s; trying again", error)
    return is_passing


def _write_through(file: IO[bytes], data: bytes) -> None:
    """Write to the disk itself: a rename may reach it before the content does, and announce an empty file."""
    # What it costs: on a busy ext4 disk 1,000 small markers took 4 to 7 s, and 0.2 to 1.8 s without.
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    """Write a folder's names to the disk.

    Some file systems cannot sync folders. The file is there for all to see by now, so that is no failure.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _encode_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
