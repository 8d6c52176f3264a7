"""Methods that users bring: found by module or file, made of plain functions, and known again by their source."""

import re
from pathlib import Path

import pytest

from datadream import recipes
from datadream.config import ExperimentConfig, located, public_config
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet, sample_shots
from datadream.methods import make_plan
from datadream.methods.own import load_method
from datadream.report.page import write_report
from datadream.run.cell import Cell, cells_of
from datadream.run.config_record import check_config, record_config
from datadream.run.layout import CONFIG, PAGE, ClassifierMarker, classifier_marker
from datadream.run.store import RunStore

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def few_shot() -> FewShotSet:
    return sample_shots(open_source("digits").dataset(), 4, 0, "a photo of a {name}")


@pytest.fixture
def file(tmp_path) -> Path:
    """The method of the README, as its reader saves it."""
    (source,) = re.findall(r"```python\n(from datadream.methods import .*?)```", README.read_text(), re.DOTALL)
    path = tmp_path / "plans.py"
    path.write_text(source)
    return path


def config(method: str) -> ExperimentConfig:
    return recipes.digits(method=method, **{"generate.images_per_class": 6})


def test_the_readmes_method_plans_both_sentences(file, few_shot, tmp_path, monkeypatch):
    plan = make_plan(few_shot, config(f"{file}:two_prompts"))
    prompts = [request.prompt for series in plan.images for request in series if series.label == 3]
    assert prompts == ["a scan of a digit three"] * 3 + ["a digit three by hand"] * 3
    indices = [request.index for series in plan.images for request in series if series.label == 3]
    assert indices == [0, 2, 4, 1, 3, 5]
    assert len({request.seed for series in plan.images for request in series}) == 60
    monkeypatch.syspath_prepend(tmp_path)
    assert make_plan(few_shot, config("plans:two_prompts")) == plan


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{file}:two_promts", "has no function 'two_promts'. Did you mean 'two_prompts'?"),
        ("{file}:Plan2", "has no function 'Plan2'"),
        ("nowhere.py:two_prompts", "there is no file 'nowhere.py'"),
        (
            "nosuchpkg.plans:two_prompts",
            "Python finds no module 'nosuchpkg.plans'. Install its package, add its folder",
        ),
        ("json:dumps", "'json:dumps' cannot be called with two values: expected dumps.few_shot, config."),
    ],
)
def test_what_is_not_there_is_said(file, method, message):
    with pytest.raises(ValueError, match=message):
        load_method(method.format(file=file))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def plan(few_shot, config): return []",
            "method 'own.py:plan' returned list: expected a datadream.methods.Plan",
        ),
        (
            "from datadream.methods import ImageSeries, Plan\n"
            "def plan(few_shot, config): return Plan(images=(ImageSeries(10, ('a cat',), 1, 0),))",
            "'own.py:plan' asks for images of class 10: expected 0 to 9",
        ),
        *(
            (
                "from datadream.methods import ImageSeries, Plan\n"
                f"def plan(few_shot, config): return Plan(images=(ImageSeries(1, ('a cat',), {n}, 0, {first}),))",
                f"plans the images {first} to {first + n - 1} of class 'digit one', {n} of them: expected 0 to ",
            )
            for n, first in ((7, 0), (2, 1))
        ),
        (
            "from datadream.methods import AdapterSpec, Plan\n"
            "def plan(few_shot, config): return Plan((AdapterSpec('../a', (), 1, 0),))",
            "adapter '../a' is no name of a folder",
        ),
        (
            "from datadream.methods import AdapterSpec, Plan\n"
            "def plan(few_shot, config): return Plan((AdapterSpec('a', (), 1, 0),) * 2)",
            "adapter 'a' is there twice",
        ),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(source, message, few_shot, tmp_path):
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(ValueError, match=message):
        make_plan(few_shot, config(f"{tmp_path / 'own.py'}:plan"))


def test_a_module_that_the_users_own_lacks_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import nosuchdependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nosuchdependency"):
        load_method("lacking:plan")


def test_a_run_notices_that_the_function_changed_and_not_that_it_moved(file, tmp_path, monkeypatch):
    store = RunStore(str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    own = located(config("plans.py:two_prompts"))
    assert own.method == f"{file}:two_prompts"
    record_config(store, own)
    check_config(store, own)
    (tmp_path / "elsewhere").mkdir()
    moved = config(f"{file.rename(tmp_path / 'elsewhere' / 'plans.py')}:two_prompts")
    check_config(store, moved)
    record_config(store, moved)
    assert store.read_json(CONFIG)["config"]["method"] == moved.method
    (tmp_path / "elsewhere" / "plans.py").write_text(
        file.with_name("elsewhere").joinpath("plans.py").read_text() + "#"
    )
    with pytest.raises(ValueError, match="another version of method 'plans.py:two_prompts': its file has changed"):
        check_config(store, moved)
    with pytest.raises(ValueError, match="made with another config: method "):
        check_config(store, config("is-synth"))


def test_a_table_has_a_folder_for_it_and_records_tell_no_path(file, tmp_path):
    grid = {"grid.methods": [f"{file}:two_prompts", "zero-shot"], "classify.settings": ["synthetic"]}
    cells = cells_of(recipes.digits(**grid), RunStore(str(tmp_path / "run")))
    assert [cell.store.name for cell in cells] == ["plans.py-two_prompts-k4-seed0", "zero-shot-k4-seed0"]
    for cell, top1 in zip(cells, (90.0, 80.0), strict=True):
        marker = ClassifierMarker(setting="synthetic", top1=top1, n_synthetic=2000)
        cell.store.write_json(classifier_marker("synthetic"), marker.to_json())
    table = RunStore(str(tmp_path / "run"))
    write_report(table, [(cell.store, cell.config) for cell in cells], recipes.digits(**grid))
    names = [record["method"] for record in table.read_json("metrics.json")]
    assert names == ["zero-shot", "plans.py:two_prompts"]
    page = table.read_bytes(PAGE).decode()
    assert "plans.py:two_prompts" in page
    assert str(tmp_path) not in page
    assert str(tmp_path) not in str(public_config(recipes.digits(**grid)))


def test_two_methods_that_are_called_alike_are_not_mixed(file, tmp_path):
    other = tmp_path / "other" / "plans.py"
    other.parent.mkdir()
    other.write_text(file.read_text())
    with pytest.raises(ValueError, match="which are called alike"):
        cells_of(recipes.digits(**{"grid.methods": [f"{file}:two_prompts", f"{other}:two_prompts"]}), RunStore("run"))


@pytest.mark.soak
def test_it_runs_from_end_to_end(file, local_ray, tmp_path):
    from datadream.experiment.experiment import Experiment

    changes = {"generate.images_per_class": 4, "generate.steps": 2, "classify.steps": 4, "classify.eval_every": 4}
    own = config(f"{file}:two_prompts").updated(changes | {"classify.settings": ["synthetic"], "cluster.workers": 2})
    experiment = Experiment(own, str(tmp_path / "run"))
    (record,) = experiment.run()
    assert (record["method"], record["n_synthetic"]) == ("plans.py:two_prompts", 40)
    assert isinstance(experiment.cells[0], Cell)
    assert experiment.is_finished()
    card = experiment.store.read_bytes("dataset/README.md").decode()
    assert "| method | plans.py:two_prompts |" in card
    assert str(tmp_path) not in card


def test_a_file_that_is_no_python_is_named_with_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("\ndef plan(:\n")
    with pytest.raises(ValueError, match=r"bad.py, line 2, is no Python: invalid syntax.$"):
        load_method(f"{tmp_path}/bad.py:plan")
