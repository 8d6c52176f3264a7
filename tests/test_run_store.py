"""Writes are whole or absent; a folder belongs to one config."""

import pytest

from datadream import recipes
from datadream.run_store import RunStore


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> RunStore:
    return RunStore(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run")


def test_write_read_and_markers(store):
    store.write_bytes("a/b.bin", b"12")
    store.write_json("a/b.json", {"x": 1})
    assert store.read_bytes("a/b.bin") == b"12"
    assert store.read_json("a/b.json") == {"x": 1}
    assert store.markers("a") == {"b"}
    assert store.markers("nothing") == set()
    assert store.child("a").exists("b.bin")


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path / "run"))
    store.write_bytes("a", b"old")
    monkeypatch.setattr(store.fs, "mv", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write_bytes("a", b"new")
    assert store.read_bytes("a") == b"old"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_sweep_removes_only_temporaries(tmp_path):
    store = RunStore(str(tmp_path))
    store.write_bytes("x/kept.tmp", b"")
    (tmp_path / "x" / ".half.json.123.tmp").write_bytes(b"half")
    store.sweep_temporary()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["kept.tmp"]


def test_another_config_is_refused_by_key(store):
    config = recipes.digits()
    store.save_config(config)
    store.check_config(config.updated({"cluster.workers": 1}))
    with pytest.raises(ValueError, match=r"adapt.rank \(16 there, 4 now\); seed \(0 there, 7 now\)|seed.*adapt.rank"):
        store.check_config(config.updated({"adapt.rank": 4, "seed": 7}))


def test_unwritable_url_is_told_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        RunStore("/proc/nowhere/run").check_writable()
    RunStore(str(tmp_path / "deep" / "run")).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_unknown_scheme_is_told():
    with pytest.raises(ValueError, match="cannot be opened"):
        RunStore("nosuch://bucket/run")
