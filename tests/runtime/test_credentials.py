"""Workers get what reaches the run's own stores, and nothing else of the driver's environment."""

from __future__ import annotations

import pytest

from datadream import ExperimentConfig
from datadream.config.locations import locations
from datadream.runtime.credentials import OF_A_JOB, VARIABLES, credentials

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_ENDPOINT_URL": "http://store:9000",
    "AZURE_STORAGE_ACCOUNT_KEY": "account",
    "HF_TOKEN": "token",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in {name for names in VARIABLES.values() for name in names} | {OF_A_JOB}:
        monkeypatch.delenv(name, raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("location", "passed"),
    [
        ("s3://bucket/run", {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"}),
        ("abfs://container/run", {"AZURE_STORAGE_ACCOUNT_KEY"}),
        ("simplecache::s3://bucket/photos", {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"}),
        ("gs://bucket/run", set()),
        ("stabilityai/stable-diffusion-2-1-base", {"HF_TOKEN"}),
        ("package://datadream.models.tiny/clip", set()),
        ("/a/path/of/the/nodes", set()),
        ("digits", set()),
        ("", set()),
    ],
)
def test_a_location_takes_the_variables_of_its_store(location, passed, tmp_path):
    assert credentials([location or str(tmp_path)]) == {name: KEYS[name] for name in passed}


def test_a_jobs_workers_have_what_its_runtime_env_says(monkeypatch):
    monkeypatch.setenv(OF_A_JOB, "{}")
    assert credentials(["s3://bucket/run"]) == {}


def test_of_a_config_all_that_is_read_counts(tmp_path):
    local = {"diffusion.model": str(tmp_path), "classify.model": f"local-dir:{tmp_path}"}
    config = ExperimentConfig().updated({"data.source": "s3://photos"} | local)
    assert credentials(locations(config).values()).keys() == {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"}
    config = ExperimentConfig().updated({"data.source": "s3://photos", "diffusion.model": "owner/model"})
    assert credentials(locations(config).values()).keys() == KEYS.keys() - {"AZURE_STORAGE_ACCOUNT_KEY"}
