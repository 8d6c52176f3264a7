"""How far a run is, from its files alone, with few questions, and without torch or Ray."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datadream import recipes
from datadream.data.few_shot import FewShotSet
from datadream.experiment.experiment import Experiment
from datadream.experiment.status import StageStatus, watched
from datadream.run.cell import Cell
from datadream.run.layout import (
    CANDIDATES,
    DATASET,
    FEW_SHOT,
    SELECTION,
    ProgressRecord,
    adapter_marker,
    classifier_marker,
    progress_file,
)
from datadream.run.store import RunStore

SETTINGS = {"classify.settings": ["real", "synthetic"], "generate.images_per_class": 4, "generate.chunk_size": 2}


def of_many_classes(few_shot: FewShotSet, n_classes: int) -> FewShotSet:
    names = tuple(f"class {label}" for label in range(n_classes))
    return replace(few_shot, class_names=names, prompts=names, shots=(few_shot.shots[0],) * n_classes)


@pytest.fixture
def asked(monkeypatch) -> Counter[str]:
    """Questions to the file system."""
    calls: Counter[str] = Counter()
    for name in ("find", "exists", "cat_file"):
        original = getattr(MemoryFileSystem, name)

        def call(*args, name=name, original=original, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, call)
    return calls


def counts(experiment: Experiment) -> dict[str, tuple[int, int]]:
    return {stage.stage: (stage.done, stage.total) for stage in experiment.status()}


def test_a_thousand_adapters_take_no_more_questions_than_ten(tmp_path, asked):
    few_shot = Cell(recipes.digits(), RunStore(str(tmp_path / "any"))).few_shot
    questions = []
    for n_classes in (10, 1000):
        store = RunStore(f"memory://{tmp_path.name}/{n_classes}")
        store.write_json(FEW_SHOT, of_many_classes(few_shot, n_classes).to_json())
        for label in range(0, n_classes, 2):
            store.write_json(adapter_marker(f"class-{label:05d}"), {})
        asked.clear()
        experiment = Experiment(recipes.digits(**SETTINGS), store.url)
        assert counts(experiment)["adapt"] == (n_classes // 2, n_classes)
        questions.append(dict(asked))
    assert questions[0] == questions[1]
    assert sum(questions[0].values()) < 20


def test_stages_are_counted_from_their_markers(tmp_path):
    store = RunStore(str(tmp_path))
    experiment = Experiment(recipes.digits(**SETTINGS), store.url)
    for marker in (adapter_marker("class-00003"), "chunks/00003-000000.json", classifier_marker("real"), DATASET):
        store.write_json(marker, {})
    assert counts(experiment) == {
        "adapt": (1, 10),
        "generate": (2, 40),
        "publish": (1, 1),
        "classify": (1, 2),
    }


def test_where_filters_choose_the_images_asked_for_may_grow(tmp_path):
    store = RunStore(str(tmp_path))
    experiment = Experiment(recipes.digits(**SETTINGS | {"generate.select.label_top_k": 1}), store.url)
    assert counts(experiment)["generate"] == (0, 40)
    store.write_json(CANDIDATES, [8] * 10)
    store.write_json(SELECTION, {})
    found = counts(experiment)
    assert found["generate"] == (0, 80)
    assert found["select"] == (1, 1)


def test_what_a_stage_said_last_is_shown_with_its_age_until_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("datadream.experiment.status.time.time", lambda: 107.2)
    store = RunStore(str(tmp_path))
    experiment = Experiment(recipes.digits(**SETTINGS), store.url)
    said = ProgressRecord(text="3/10 steps", time=100.0, done=3, numbers={})
    for stage in ("adapt", "search"):
        store.write_json(progress_file(stage), said.to_json())
    lines = {stage.stage: str(stage) for stage in experiment.status()}
    assert lines["adapt"] == "adapt     0/10 adapters\n          3/10 steps (7 s ago)"
    assert lines["classify"].endswith("3/10 steps (7 s ago)")
    for label in range(10):
        store.write_json(adapter_marker(f"class-{label:05d}"), {})
    assert str(experiment.status()[0]) == "adapt     10/10 adapters"


def test_watching_says_what_has_changed_until_all_is_done(monkeypatch):
    """A running stage that says the same again is only older."""
    adapt, classify = StageStatus("adapt", 0, 2, "adapters", "3/10 steps", 1.0), StageStatus("classify", 0, 1, "x")
    looks = [
        [adapt, classify],
        [replace(adapt, seconds_ago=11.0), classify],
        [replace(adapt, running="5/10 steps"), classify],
        [replace(adapt, done=2), classify],
        [replace(adapt, done=2), replace(classify, done=1)],
        [],
    ]
    monkeypatch.setattr("datadream.experiment.status.SECONDS_BETWEEN_LOOKS", 0.0)
    told = [str(stage).split("\n")[-1].strip() for stage in watched(lambda: looks.pop(0))]
    assert told == [
        "3/10 steps (1 s ago)",
        "classify  0/1 x",
        "5/10 steps (1 s ago)",
        "adapt     2/2 adapters",
        "classify  1/1 x",
    ]
    assert looks == [[]]


def test_status_imports_neither_torch_nor_ray(tmp_path):
    """They take seconds, and somebody may ask every minute."""
    code = (
        "import sys\n"
        "from datadream.cli import main\n"
        f"code = main(['status', '--run', {str(tmp_path / 'run')!r}, '--recipe', 'digits'])\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers', 'open_clip'} & sys.modules.keys()))\n"
        "sys.exit(code)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = said.stdout.splitlines()
    assert lines[0].split() == ["adapt", "0/10", "adapters"]
    assert lines[-1] == "[]"
