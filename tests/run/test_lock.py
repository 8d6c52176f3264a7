"""One driver at a time writes a run: others are refused, the dead are succeeded, and who lost the lock stops."""

import itertools
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from datadream.run.layout import LOCK, SCRATCH
from datadream.run.lock import RunLock
from datadream.run.store import RunStore

QUICK = 0.1
"""Heartbeats in seconds, where a test has to wait for them."""

NEVER = 600.0
"""For what must not wait: one pause would exceed the time that a test has."""

DRIVER = """
import logging, socket, sys, time
from datadream.run.lock import RunLock
from datadream.run.store import RunStore

url, host, seconds = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
with RunLock(RunStore(url), heartbeat_seconds=float(seconds)):
    print("held", flush=True)
    for _ in range(6000):
        time.sleep(0.1)
"""


@pytest.fixture(params=["local", "s3"])
def shared(request, tmp_path) -> RunStore:
    """What several processes can reach."""
    if request.param == "s3":
        return RunStore(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/run")
    return RunStore(str(tmp_path / "run"))


@contextmanager
def driver(store: RunStore, host: str = "", seconds: float = NEVER, shell: str = "") -> Iterator[subprocess.Popen]:
    """Another process that holds the lock, started by `shell` if that is given."""
    command = [sys.executable, "-c", DRIVER, store.url, host, str(seconds)]
    command = ["sh", "-c", shell, *command] if shell else command
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n", process.communicate()[1]
            yield process
        finally:
            process.kill()


def wait_until(reached: Callable[[], bool]) -> None:
    for _ in range(600):
        if reached():
            return
        threading.Event().wait(0.05)
    raise AssertionError("waited for 30 seconds")


def wait_to_be_interrupted() -> None:
    for _ in range(600):
        threading.Event().wait(0.05)


def leave_temporaries(store: RunStore) -> None:
    """What a killed writer leaves, beside files that look similar."""
    store.write_bytes("x/kept.tmp", b"")
    store.write_bytes(f"{SCRATCH}1/half", b"")
    store.write_bytes(".lock.json.123.tmp", b"")
    if store.is_local:
        Path(store.path("x/.half.json.123.tmp")).write_bytes(b"half")


def files(store: RunStore) -> set[str]:
    return {path.rpartition("/")[2] for path in store.fs.find(store.root)}


def test_a_second_one_in_the_same_process_is_refused(store):
    with RunLock(store, NEVER):
        with pytest.raises(ValueError, match="is being written by"), RunLock(store, NEVER):
            pass
        assert store.exists(LOCK)
    assert not store.exists(LOCK)


def test_it_is_released_when_the_block_fails(store):
    with pytest.raises(KeyError, match="the work's own"), RunLock(store, NEVER):
        raise KeyError("the work's own")
    assert not store.exists(LOCK)
    lock = RunLock(store, NEVER)
    for _ in range(2):
        with lock:
            assert store.exists(LOCK)


def test_the_holder_sweeps_and_nobody_else(store):
    leave_temporaries(store)
    before = files(store)
    store.write_bytes(LOCK, b"")
    with RunLock(store, QUICK) as lock:
        lock._stop.set()  # a renewal's own temporary would be among the files
        lock._heartbeat.join()
        assert files(store) == {"kept.tmp", LOCK}
        leave_temporaries(store)
        with pytest.raises(ValueError, match="is being written"), RunLock(store, NEVER):
            pass
        assert files(store) == before | {LOCK}


def test_the_holder_ends_the_uploads_that_killed_writers_began_and_no_neighbours(bucket, tmp_path):
    store, neighbour = (RunStore(f"{bucket}/{tmp_path.name}/{name}") for name in ("run", "run-2"))
    for each in (store, neighbour):
        each.write_bytes("whole", b"")
        key = each.fs.split_path(each.path("dataset/data/half.parquet"))[1]
        each.fs.call_s3("create_multipart_upload", Bucket=bucket.removeprefix("s3://"), Key=key)
    with RunLock(store, NEVER):
        left = store.fs.call_s3("list_multipart_uploads", Bucket=bucket.removeprefix("s3://"))["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{tmp_path.name}/run-2/dataset/data/half.parquet"]
    assert files(store) == {"whole"}


def test_starts_beside_a_writer_do_it_no_harm(tmp_path):
    """A start used to remove the temporary files of a run that was being written: its renames failed."""
    store = RunStore(str(tmp_path))
    done = threading.Event()

    def write() -> None:
        for index in range(100):
            store.write_json(f"chunks/{index}.json", {})
        done.set()

    with driver(store), ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        while not done.is_set() and not writing.done():
            with pytest.raises(ValueError, match="is being written"), RunLock(store, NEVER):
                pass
        writing.result()
    assert len(store.markers("chunks")) == 100


def test_another_driver_is_refused_and_the_owner_named(shared):
    with driver(shared) as other:
        owner = shared.read_json(LOCK)
        with pytest.raises(ValueError, match="is being written") as refused, RunLock(shared, NEVER):
            pass
        for part in (owner["user"], owner["host"], owner["since"], f"process {other.pid} ", f"{shared.url}/{LOCK}"):
            assert part in str(refused.value)
        assert shared.read_json(LOCK) == owner


def test_a_killed_owner_is_succeeded_at_once(shared):
    with driver(shared) as other:
        pass
    assert shared.read_json(LOCK)["pid"] == other.pid
    with RunLock(shared, QUICK):  # NEVER in the lock of the dead: its heartbeat is not waited for
        assert shared.read_json(LOCK)["pid"] != other.pid
    assert not shared.exists(LOCK)


def test_of_several_successors_one_succeeds(tmp_path):
    store = RunStore(str(tmp_path))
    with driver(store):
        pass
    all_tried, entered = threading.Barrier(4, timeout=60), []

    def succeed(number: int) -> None:
        with suppress(ValueError), RunLock(store):
            entered.append(number)
            all_tried.wait()
            return
        all_tried.wait()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(succeed, range(4)))
    assert len(entered) == 1


def test_a_process_number_that_was_given_again_is_not_the_owner(tmp_path):
    store = RunStore(str(tmp_path))
    with RunLock(store, NEVER):
        record = store.read_json(LOCK)
    store.write_json(LOCK, record | {"token": "dead", "started": "1"})
    with RunLock(store, QUICK):
        assert store.read_json(LOCK)["token"] != "dead"


@pytest.mark.parametrize("left", [b"", b'{"token": '])
def test_a_creator_that_was_killed_blocks_nobody(store, left):
    store.write_bytes(LOCK, left)
    with RunLock(store, QUICK):
        assert store.read_json(LOCK)["heartbeat_seconds"] == QUICK
    assert not store.exists(LOCK)


def test_on_another_machine_the_heartbeat_tells_life_from_death(shared):
    with driver(shared, host="elsewhere", seconds=0.5) as other:
        with pytest.raises(ValueError, match=f"process {other.pid} on elsewhere"), RunLock(shared, 2.0):
            pass
        beats = shared.read_json(LOCK)["heartbeats"]
        wait_until(lambda: shared.read_json(LOCK)["heartbeats"] > beats)  # lest it is stopped while it renews
        other.send_signal(signal.SIGSTOP)
        with RunLock(shared, QUICK):
            assert shared.read_json(LOCK)["host"] != "elsewhere"
            other.send_signal(signal.SIGCONT)
            errors = other.communicate()[1]
            assert other.returncode == 1
            own = shared.read_json(LOCK)
            assert f"held by {own['user']} (process {own['pid']} on {own['host']}, since {own['since']})" in errors
            assert errors.splitlines()[-1].startswith("RuntimeError")


def test_the_same_number_in_another_container_is_watched(tmp_path):
    """Containers may share a host's name and not its processes."""
    store = RunStore(str(tmp_path))
    with driver(store, seconds=QUICK):
        pass
    dead = store.read_json(LOCK)
    store.write_json(LOCK, dead | {"machine": "another"})
    beats, stop = 0, threading.Event()

    def renew() -> None:
        nonlocal beats
        while not stop.wait(QUICK):
            beats += 1
            store.write_json(LOCK, dead | {"machine": "another", "heartbeats": beats})

    with ThreadPoolExecutor(1) as threads:
        renewing = threads.submit(renew)
        try:
            with pytest.raises(ValueError, match="is being written"), RunLock(store, 2.0):
                pass
        finally:
            stop.set()
        renewing.result()
    with RunLock(store, QUICK):
        assert store.read_json(LOCK)["token"] != dead["token"]


def test_the_owner_of_a_removed_lock_is_interrupted(store):
    message = "lost the lock of its run.*The file was removed"
    with pytest.raises(RuntimeError, match=message) as raised, RunLock(store, QUICK):  # noqa: PT012
        for _ in range(600):
            if store.exists(LOCK):  # again: a heartbeat under way brings the file back
                store.remove(LOCK)
            threading.Event().wait(0.05)
    assert isinstance(raised.value.__cause__, KeyboardInterrupt)
    assert not store.exists(LOCK)


def test_the_owner_is_interrupted_in_a_thread(tmp_path):
    store = RunStore(str(tmp_path))

    def work() -> None:
        with RunLock(store, QUICK):
            store.remove(LOCK)
            wait_to_be_interrupted()

    with ThreadPoolExecutor(1) as threads, pytest.raises(RuntimeError, match="The file was removed"):
        threads.submit(work).result()


def test_the_owner_is_interrupted_as_a_background_job(tmp_path):
    """Shells without job control start those with Ctrl-C ignored."""
    store = RunStore(str(tmp_path))
    with driver(store, seconds=QUICK, shell="""trap '' INT; exec "$0" "$@" """) as other:
        store.remove(LOCK)
        errors = other.communicate()[1]
        assert other.returncode == 1
        assert "The file was removed" in errors.splitlines()[-1]


def test_the_new_owner_keeps_its_lock_when_the_old_one_ends(store):
    with RunLock(store, NEVER):
        new = store.read_json(LOCK) | {"token": "new"}
        store.write_json(LOCK, new)
    assert store.read_json(LOCK) == new


class UnreliableStore(RunStore):
    """A file system that can be out of reach."""

    failures, out_of_reach, cannot_remove = 0, False, False

    def read_bytes(self, name: str) -> bytes:
        if self.out_of_reach:
            self.failures += 1
            raise OSError("no route to host")
        return super().read_bytes(name)

    def remove(self, name: str) -> None:
        if self.cannot_remove:
            raise PermissionError("read-only file system")
        super().remove(name)


def test_a_file_system_out_of_reach_is_no_loss(tmp_path, caplog):
    store = UnreliableStore(str(tmp_path))
    with RunLock(store, QUICK):
        store.out_of_reach = True
        wait_until(lambda: store.failures >= 2)
        store.out_of_reach = False
        beats = store.read_json(LOCK)["heartbeats"]
        wait_until(lambda: store.read_json(LOCK)["heartbeats"] > beats)
    assert "no route to host" in caplog.text
    assert not store.exists(LOCK)


def test_the_owner_is_interrupted_when_the_file_system_stays_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr("datadream.run.lock.LOST_HEARTBEATS", 5)
    looks = itertools.count(0, 2 * QUICK)  # by the clock a heartbeat passes between two looks at it, however late
    clock = SimpleNamespace(monotonic=lambda: next(looks), sleep=time.sleep)
    monkeypatch.setattr("datadream.run.lock.time", clock)
    store = UnreliableStore(str(tmp_path))
    message = "the run's storage could not be reached for 1 s: no route to host"
    with pytest.raises(RuntimeError, match=message), RunLock(store, 2 * QUICK):  # noqa: PT012
        store.out_of_reach = True
        wait_to_be_interrupted()


def test_a_lock_that_cannot_be_removed_does_not_spoil_the_end(tmp_path, caplog):
    store = UnreliableStore(str(tmp_path / "run"))
    store.cannot_remove = True
    with RunLock(store, NEVER):
        pass
    assert "read-only file system" in caplog.text
    shutil.rmtree(tmp_path / "run")
    with RunLock(store, NEVER):
        shutil.rmtree(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
