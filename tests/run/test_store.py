"""Writes are whole or absent."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from datadream.run import store as store_module
from datadream.run.store import RunStore, limit_attempts
from tests.object_store import object_store


def test_write_read_and_markers(store):
    store.write_bytes("a/b.bin", b"12")
    store.write_json("a/b.json", {"x": 1})
    assert store.read_bytes("a/b.bin") == b"12"
    assert store.read_json("a/b.json") == {"x": 1}
    assert store.markers("a") == {"b"}
    assert store.markers("nothing") == set()
    assert store.child("a").exists("b.bin")
    store.move("a/b.bin", "a/c.bin")
    assert not store.exists("a/b.bin")
    assert store.read_bytes("a/c.bin") == b"12"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/hostname", "a/.."])
def test_names_that_lead_out_of_the_run_are_neither_read_nor_written(name, store):
    """They may come from a stranger's run, such as from its list of shards."""
    for use in (store.exists, store.read_bytes, store.remove, store.files, lambda path: store.write_bytes(path, b"")):
        with pytest.raises(ValueError, match="leads out of run"):
            use(name)
    assert store.path("a/..b/c..d").endswith("a/..b/c..d")


def test_files_are_shown_as_they_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunStore("runs/a").url_of("report/index.html") == str(tmp_path / "runs/a/report/index.html")
    assert RunStore("memory://runs/a").url_of("report/index.html") == "memory://runs/a/report/index.html"


def test_of_several_writers_the_first_one_counts(store):
    assert store.write_json_once("a/b.json", {"x": 1}) == {"x": 1}
    assert store.write_json_once("a/b.json", {"x": 2}) == {"x": 1}
    assert store.markers("a") == {"b"}
    assert store.read_json_once("a/b.json") == {"x": 1}
    assert store.read_json_once("a/c.json") is None
    with pytest.raises(FileExistsError):
        store.create_bytes("a/b.json", b"")


def test_the_first_one_counts_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    store = RunStore(str(tmp_path))
    assert [store.write_json_once("b.json", {"x": x}) for x in range(2)] == [{"x": 0}, {"x": 0}]
    assert os.listdir(tmp_path) == ["b.json"]


def test_writers_and_readers_at_once_see_one_whole_value(tmp_path):
    store = RunStore(str(tmp_path))

    def write(x: int) -> list[str]:
        return [store.write_json_once(f"{index}.json", {"x": str(x) * 20_000})["x"] for index in range(20)]

    def read() -> list[str]:
        found = []
        while len(found) < 20:
            if value := store.read_json_once(f"{len(found)}.json"):
                found.append(value["x"])
        return found

    with ThreadPoolExecutor(4) as threads:
        results = [threads.submit(write, x) for x in range(3)] + [threads.submit(read)]
    first, *others = [result.result() for result in results]
    assert others == [first] * 3


@pytest.mark.parametrize("left", [b"", b'{"x": '])
def test_a_creator_that_was_killed_blocks_nobody(tmp_path, monkeypatch, left):
    # Of several who replace the file the pause decides: half a second was once too short on a busy machine.
    monkeypatch.setattr(store_module, "CREATION_SECONDS", 1.5)
    store = RunStore(str(tmp_path))
    (tmp_path / "b.json").write_bytes(left)
    assert store.read_json_once("b.json") is None
    with ThreadPoolExecutor(3) as threads:
        values = list(threads.map(lambda x: store.write_json_once("b.json", {"x": x}), range(3)))
    assert values == [store.read_json("b.json")] * 3
    assert os.listdir(tmp_path) == ["b.json"]


def test_what_another_process_writes_is_seen(bucket):
    """The client of an object store keeps listings, unless it is told not to."""
    store = RunStore(f"{bucket}/shared")
    store.write_json("chunks/0.json", {})
    assert (store.markers("chunks"), store.exists("chunks/1.json")) == ({"0"}, False)
    code = f"from datadream.run.store import RunStore; RunStore({store.url!r}).write_json('chunks/1.json', {{}})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (store.markers("chunks"), store.exists("chunks/1.json")) == ({"0", "1"}, True)


@pytest.mark.soak
@pytest.mark.parametrize("attempts", [1, 2])
def test_a_store_that_is_away_is_asked_as_often_as_is_said(attempts, caplog):
    with object_store() as server:
        store = RunStore(f"{server.url}/run")
        limit_attempts(store, attempts)
        server.stop()
        with pytest.raises(Exception, match="Could not connect"):
            RunStore(store.url).write_bytes("file", b"")
        assert caplog.text.count("trying again") == attempts
        server.start(server.port)


def test_object_stores_that_cannot_be_used_are_told(bucket):
    store = RunStore(f"{bucket}/new/run")
    store.check_writable()
    assert store.fs.find(store.root) == []
    with pytest.raises(ValueError, match="'s3://elsewhere/run' cannot be written: The specified bucket does not"):
        RunStore("s3://elsewhere/run").check_writable()


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path / "run"))
    store.write_bytes("a", b"old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                store.write_bytes("a", b"new")
    assert store.read_bytes("a") == b"old"
    assert os.listdir(tmp_path / "run") == ["a"]


def test_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            store.write_json_once("a.json", {"x": 1})
    assert os.listdir(tmp_path) == []
    assert store.write_json_once("a.json", {"x": 2}) == {"x": 2}


def test_unwritable_url_is_told_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        RunStore("/proc/nowhere/run").check_writable()
    RunStore(str(tmp_path / "deep" / "run")).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_unknown_scheme_is_told():
    with pytest.raises(ValueError, match="cannot be opened"):
        RunStore("nosuch://bucket/run")
