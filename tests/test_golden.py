"""Runs that an earlier revision left: the present code reads them, does nothing again, and ends what was half done."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests import golden

REVISION = "e57149e"
"""The last one before modules moved and markers became typed records."""
RESULTS = ("adapters", "chunks", "dataset", "classifier")
PASSING = {"seconds", "versions", "sha256", "n_bytes"}
"""Keys of markers that say when and with what they were made, or follow from NEWER."""
NEWER = {"resolution", "precision"}
"""What an image's provenance did not say then."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    command = ["git", "rev-parse", "--verify", "--quiet", f"{REVISION}^{{commit}}"]
    if subprocess.run(command, cwd=golden.ROOT, capture_output=True).returncode != 0:
        pytest.skip(
            f"needs revision {REVISION}, which is not here: a shallow clone, or no clone. Run git fetch --unshallow."
        )
    folder = tmp_path_factory.mktemp("golden")
    golden.make(REVISION, folder)
    return folder


@pytest.fixture(params=golden.VARIANTS)
def finished(request, runs) -> Path:
    return runs / request.param


def files(run: Path) -> list[Path]:
    return sorted(path for folder in RESULTS for path in (run / folder).rglob("*") if path.is_file())


def contents(run: Path) -> dict[str, Any]:
    """The results by name, JSON with its keys in their order. What people read, the dataset's card, may change its
    words."""
    named = [*files(run), run / "config.json", run / "few_shot.json", run / "metrics.json"]
    return {str(path.relative_to(run)): _content(path) for path in named}


def _content(path: Path) -> Any:
    if path.suffix == ".md":
        return "prose"
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        for row in (row for row in rows if "provenance" in row):  # of images, and not of logits
            told = json.loads(row["provenance"])
            row["provenance"] = json.dumps({key: value for key, value in told.items() if key not in NEWER})
        return rows
    return json.dumps(_lasting(json.loads(path.read_text()))) if path.suffix == ".json" else path.read_bytes()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in PASSING}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def kill(run: Path) -> None:
    """Leave what a kill may leave: half of what is committed one by one, data without markers, no later stage."""
    for pattern in ("adapters/*/adapter.json", "chunks/*.json", "classifier/*/search/*.json"):
        for marker in sorted(run.glob(pattern))[::2]:
            marker.unlink()
    for pattern in ("adapters/index.json", "classifier/*/search.json", "classifier/*/metrics.json", "metrics.json"):
        for path in run.glob(pattern):
            path.unlink()
    for folder in ("dataset", "report"):
        shutil.rmtree(run / folder)


def test_a_finished_run_is_read_and_nothing_of_it_is_made_again(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "report")
    golden.run(finished.name, run)
    assert contents(run) == contents(finished)
    assert {path: path.stat().st_mtime_ns for path in files(run)} == {
        run / path.relative_to(finished): path.stat().st_mtime_ns for path in files(finished)
    }
    assert (run / "report" / "index.html").is_file()


def test_what_was_half_done_becomes_what_it_would_have_become(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    kill(run)
    golden.run(finished.name, run)
    ours, theirs = contents(run), contents(finished)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def test_its_classifier_says_the_same_of_a_photo(runs):
    said = golden.datadream("predict", str(runs / next(iter(golden.VARIANTS))), str(runs / golden.PHOTO))
    assert said == (runs / golden.PREDICTION).read_text()
