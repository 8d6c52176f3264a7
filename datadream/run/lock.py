"""The lock of a run: one driver at a time writes its folder, and that driver alone sweeps what killed writers left.

The lock is a file that is created exclusively and that its owner renews by a heartbeat, because object stores and many
network folders have no locks that the system releases when their owner dies. Such a lease cannot stop a driver that
hangs for longer than others watch, and then wakes: its next heartbeat tells it, and it may write until then. If it was
just renewing when it fell asleep, it gets the lock back, and its successor is the one that is told.
"""

from __future__ import annotations

import ctypes
import getpass
import json
import logging
import os
import posixpath
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from datadream.run.layout import LOCK, SCRATCH
from datadream.run.store import TEMPORARY, RunStore, limit_attempts

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""Between two renewals: how long a driver that lost its lock may go on writing. One small request each."""

SILENT_HEARTBEATS = 3
"""How many heartbeats an owner on another machine may miss: two can be lost to a slow file system."""

LOST_HEARTBEATS = 60
"""How many heartbeats in a row an owner waits for storage that cannot be reached, before it stops: five minutes. A
store that starts again is back by then, and a job that hangs costs machines."""

LOOK_HEARTBEATS = 0.2
"""The pause between two looks at another's lock, in heartbeats.

After it, one that took the lock looks whether another did at the same time: it must exceed the time between a taker's
last look and its rename.
"""


class RunLock:
    """Makes this process the only writer of a run for the length of a `with` block.

    Entering sweeps the run's temporary files. It raises ValueError when another driver that is alive holds the lock,
    and takes over from one that is dead: at once on the same machine, and from another machine when its heartbeat
    stands still. Clocks of two machines are never compared.

    When the lock is removed or taken meanwhile, or cannot be reached for long, the thread that entered is interrupted
    as by Ctrl-C, and the block ends with RuntimeError that names the new owner, or what is in the way.
    """

    def __init__(self, store: RunStore, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._store, self._seconds = store, heartbeat_seconds
        self._where = store.url_of(LOCK)

    def __enter__(self) -> RunLock:
        self._record = _describe_owner() | {"heartbeat_seconds": self._seconds, "heartbeats": 0}
        self._loss: str | None = None
        self._owner_thread = threading.get_ident()
        self._stop = threading.Event()
        # daemon: a process that ends without leaving the block must end, and its lock go stale.
        self._heartbeat = threading.Thread(target=self._renew_until_stopped, name="run-lock", daemon=True)
        self._acquire()
        try:
            self._heartbeat.start()
            _sweep_temporary(self._store)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._release()
        except KeyboardInterrupt:
            if self._loss is None:
                raise
        finally:
            limit_attempts(self._store)  # the next run of this process may find it again
        if self._loss is not None:
            raise RuntimeError(self._loss) from error

    def _acquire(self) -> None:
        while True:
            try:
                self._store.create_bytes(LOCK, self._encoded())
                return
            except FileExistsError:
                found = self._read()
            if self._is_own(found):  # created by a request that was sent twice
                return
            if found is not None and self._owner_is_dead(found) and self._take_over(found):
                return

    def _owner_is_dead(self, found: dict[str, Any]) -> bool:
        """Whether nobody renews the lock any more; False when it changed hands meanwhile.

        Raises ValueError when its owner is alive.
        """
        if found and (found["host"], found["machine"]) == (self._record["host"], self._record["machine"]):
            if _is_alive(found["pid"], found["started"]):
                raise ValueError(self._refusal(found))
            return True
        # The owner may have been started with a slower heartbeat than ours.
        seconds = SILENT_HEARTBEATS * max(self._seconds, found.get("heartbeat_seconds", 0.0))
        logger.info("%s: held by %s; watching its heartbeat for %.0f s", self._where, _owner_name(found), seconds)
        deadline, over = time.monotonic() + seconds, False
        while not over:
            time.sleep(self._seconds * LOOK_HEARTBEATS)
            over = time.monotonic() > deadline  # before the last look, which this process may reach late
            now = self._read()
            if now is None or now.get("token") != found.get("token"):
                return False
            if now != found:
                raise ValueError(self._refusal(now))
        return True

    def _take_over(self, found: dict[str, Any]) -> bool:
        """Replace a dead owner's lock; False when another driver was quicker, or came after us."""
        # Renamed over, never removed first: between removal and creation a third driver could create the file, and a
        # late successor remove it again, so that two would hold the lock.
        try:
            if not self._store.replace_bytes(LOCK, self._encoded(), lambda: self._read() == found):
                return False
        except FileNotFoundError:  # the new owner swept our temporary file
            return False
        time.sleep(self._seconds * LOOK_HEARTBEATS)
        if not self._is_own(self._read()):
            return False
        logger.warning("%s: taken over from %s, which is gone", self._where, _owner_name(found))
        return True

    def _renew_until_stopped(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(self._seconds):
            try:
                found = self._read()
                if self._is_own(found):
                    self._record["heartbeats"] += 1
                    self._store.write_bytes(LOCK, self._encoded())
                    renewed = time.monotonic()
                    continue
            except Exception as error:  # every file system has its own; the next heartbeat may reach it again
                said, silence = str(error) or type(error).__name__, time.monotonic() - renewed
                logger.warning("%s: not renewed: %s", self._where, said)
                if silence < LOST_HEARTBEATS * self._seconds:
                    continue
                # A run that ends writes a dozen last words, and would wait for each of them as long as for the store.
                limit_attempts(self._store, 1)
                self._lose(f"the run's storage could not be reached for {silence:.0f} s: {said}")
                return
            if found != {}:  # a lock that is being created does not name its owner yet
                became = "The file was removed" if found is None else f"It is held by {_owner_name(found)} now"
                self._lose(f"this driver lost the lock of its run, {self._where}, and stops writing it. {became}.")
                return

    def _lose(self, loss: str) -> None:
        """End the block with what was said, by KeyboardInterrupt in the thread that entered it."""
        self._loss = loss
        logger.error(loss)
        if self._stop.is_set():
            return
        # A signal also ends a system call that the thread waits in. Only the main thread gets signals, and shells
        # start background jobs with this one ignored.
        thread = self._owner_thread
        if thread == threading.main_thread().ident and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(thread, signal.SIGINT)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))

    def _release(self) -> None:
        """Remove the lock if it is ours; a folder where that cannot be done does not spoil the end of the work."""
        self._stop.set()
        # ident: a thread that was not started cannot be joined.
        if self._heartbeat.ident is not None:  # a renewal under way would bring the file back
            self._heartbeat.join(timeout=SILENT_HEARTBEATS * self._seconds)
        # Looked at once more: after a loss the file is the new owner's.
        try:
            if self._is_own(self._read()):
                self._store.remove(LOCK)
        except Exception as error:
            logger.warning("%s: not removed: %s", self._where, str(error) or type(error).__name__)

    def _read(self) -> dict[str, Any] | None:
        """What the lock holds; None when there is none, and nothing when its creator has not written it (yet)."""
        try:
            return self._store.read_json(LOCK)
        except FileNotFoundError:
            return None
        except ValueError:  # not JSON
            return {}

    def _is_own(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("token") == self._record["token"]

    def _encoded(self) -> bytes:
        return json.dumps(self._record, indent=1).encode()

    def _refusal(self, found: dict[str, Any]) -> str:
        return (
            f"run {self._store.url!r} is being written by {_owner_name(found)}. Wait until that is done or stop it; "
            f"if that process is gone, remove {self._where}"
        )


def _describe_owner() -> dict[str, Any]:
    """Who this process is, for others to read and to find out whether it is alive."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        user = str(os.getuid())
    # Where process numbers mean what they mean here: the boot and the process namespace, as containers share hosts.
    # Empty on systems that tell neither, whose host names have to do.
    machine = []
    with suppress(OSError):
        machine.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        machine.append(os.readlink("/proc/self/ns/pid"))
    return {
        "token": uuid.uuid4().hex,
        "user": user,
        "host": socket.gethostname(),
        "machine": " ".join(machine),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _owner_name(found: dict[str, Any]) -> str:
    if not found:
        return "a driver that did not write its name"
    return f"{found['user']} (process {found['pid']} on {found['host']}, since {found['since']})"


def _process_start(pid: int) -> str:
    """When a process began, in clock ticks since the boot, or "ended"; empty where the system does not tell.

    A process number alone would take a later process for the owner.
    """
    # The 22nd of proc(5)'s fields. The second, the program's name, may hold blanks and brackets, so that what follows
    # the last bracket is read, which begins with the third.
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]


def _is_alive(pid: int, started: str) -> bool:
    """Whether the process that has, or had, this number since then is running on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return _process_start(pid) in (started, "")


def _sweep_temporary(store: RunStore) -> None:
    """Remove what writers that were killed left behind.

    Without the lock this would take the files of a live writer from under it.
    """
    for path in store.fs.ls(store.root, detail=False):
        if posixpath.basename(path).startswith(SCRATCH):
            store.fs.rm(path, recursive=True)
    # Writers need no temporaries on object stores, where listing all is slow; drivers that take the lock over do.
    for path in store.fs.find(store.root, maxdepth=None if store.is_local else 1):
        if path.endswith(TEMPORARY) and posixpath.basename(path).startswith("."):
            with suppress(FileNotFoundError):  # the heartbeat renamed its own meanwhile
                store.fs.rm_file(path)
    try:
        store.end_uploads()
    except (OSError, NotImplementedError) as error:  # not everybody who may write may list uploads
        logger.warning("unfinished uploads of killed writers stay, if there are any: %s", error)
