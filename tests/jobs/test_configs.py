"""The YAML files of jobs/ say what they mean to, and need no more than the lines that are marked to be changed."""

from pathlib import Path

import pytest
import yaml

from datadream.classify.schedule import schedule_of
from datadream.cli import main
from datadream.config import ExperimentConfig
from datadream.experiment.experiment import Experiment
from datadream.experiment.suite import Suite
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.methods.n_steps import n_steps

JOBS = Path(__file__).parents[2] / "jobs"
CONFIGS = ("digits-smoke", "eurosat", "imagenet-cls", "imagenet-dset", "own-photos")


@pytest.fixture
def asked(monkeypatch) -> list[Experiment]:
    """What the command line would run."""
    made: list[Experiment] = []
    monkeypatch.setattr(Experiment, "check_inputs", lambda self: made.append(self))
    monkeypatch.setattr(Experiment, "run", lambda self, until: [])
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_names_its_run_its_recipe_and_known_knobs(name, asked):
    path = JOBS / f"{name}.yaml"
    assert main(["run", "--config", str(path)]) == 0
    said = yaml.safe_load(path.read_text())
    assert asked[0].store.root == str(Path(said["run"]).expanduser())
    assert asked[0].config != ExperimentConfig()
    assert asked[0].config.method == said.get("method", "datadream-cls")


@pytest.mark.parametrize("name", [*CONFIGS[1:], "table1"])
def test_jobs_on_gpus_wait_for_nodes(name):
    """Ray 2.60's autoscalers do not say what may come: without, the job is refused where no GPU is up yet."""
    said = yaml.safe_load((JOBS / f"{name}.yaml").read_text())["cluster"]
    assert said == {"device": "cuda", "wait_minutes": 20}


def test_a_suites_file_names_its_table_and_known_knobs(monkeypatch):
    checked: list[Suite] = []
    monkeypatch.setattr(Suite, "check", lambda self: checked.append(self))
    monkeypatch.setattr(Suite, "run", lambda self: "")
    assert main(["suite", "--config", str(JOBS / "table1.yaml")]) == 0
    runs = {run.name: run.config for run in checked[0].runs}
    assert runs["paper/table1/dtd/datadream-dset/seed2"].method == "datadream-dset"
    assert {run.seed for run in checked[0].runs} == {0, 1, 2}
    assert {name.split("/")[2] for name in runs} == {"dtd", "eurosat"}


def test_what_a_user_must_change_is_marked():
    """Photos and runs of others lie elsewhere; the smoke test has its own."""
    for name in (*CONFIGS, "table1"):
        lines = (JOBS / f"{name}.yaml").read_text().splitlines()
        places = [line for line in lines if line.lstrip().startswith(("run:", "source:"))]
        assert all("# yours" in line for line in places) or name == "digits-smoke"


def test_imagenet_has_the_papers_steps(asked):
    """Half of the epochs for one adapter of all classes, and ten times through the generated images."""
    photos = tuple(TrainingPhoto(str(number), "") for number in range(16_000))
    for name, spec, steps in (
        ("imagenet-dset", AdapterSpec("dataset", photos, 1000, 0), 200_000),
        ("imagenet-cls", AdapterSpec("class-00000", photos[:16], 1, 0), 400),
    ):
        assert main(["run", "--config", str(JOBS / f"{name}.yaml")]) == 0
        config = asked[-1].config
        assert n_steps(spec, config.adapt) == steps
        assert schedule_of("synthetic", 1000, config).steps == 78_130
        assert config.classify.search.combinations == []


def test_data_sets_of_the_paper_are_taken_as_unpacked(asked):
    for name, dataset in (("eurosat", "eurosat"), ("imagenet-cls", "imagenet"), ("imagenet-dset", "imagenet")):
        assert main(["run", "--config", str(JOBS / f"{name}.yaml")]) == 0
        assert asked[-1].config.data.dataset == dataset
        assert asked[-1].config.data.names is None
