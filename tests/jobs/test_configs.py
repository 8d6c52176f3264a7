"""The YAML files of jobs/ say what they mean to, and need no more than the lines that are marked to be changed."""

from pathlib import Path

import pytest
import yaml

from datadream.cli import main
from datadream.config import ExperimentConfig
from datadream.experiment import Experiment

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


def test_what_a_user_must_change_is_marked():
    """Photos and runs of others lie elsewhere; the smoke test has its own."""
    for name in CONFIGS:
        lines = (JOBS / f"{name}.yaml").read_text().splitlines()
        places = [line for line in lines if line.lstrip().startswith(("run:", "source:"))]
        assert all("# yours" in line for line in places) or name == "digits-smoke"


def test_the_names_of_eurosat_are_of_its_folders(monkeypatch, asked):
    monkeypatch.chdir(JOBS.parent)
    assert main(["run", "--config", "jobs/eurosat.yaml"]) == 0
    names = yaml.safe_load(Path(asked[0].config.data.names).read_text())
    assert len(names) == 10
    assert names["SeaLake"] == "sea or lake"
