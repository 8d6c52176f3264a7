"""The YAML of `ray up`, against Ray's own schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler

from tests.cluster.documents import CLUSTER, documents

NAMES = ("aws", "gcp", "local")
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_ray_knows_every_field(name):
    (config,) = documents(f"ray-up/{name}.yaml")
    jsonschema.validate(config, SCHEMA)
    with pytest.raises(jsonschema.ValidationError, match="min_workers"):
        jsonschema.validate(config | {"min_workers": 1}, SCHEMA)  # which `ray up` lets pass


@pytest.mark.parametrize("name", NAMES)
def test_the_head_offers_nothing_and_listens_to_ssh_alone(name):
    (config,) = documents(f"ray-up/{name}.yaml")
    (head,) = (command for command in config["head_start_ray_commands"] if "--head" in command)
    (worker,) = (command for command in config["worker_start_ray_commands"] if "--address" in command)
    assert "--num-cpus=0 --num-gpus=0" in head
    assert "dashboard-host" not in head  # Ray's own is this machine
    assert all("RAY_AUTH_MODE=token" in command for command in (head, worker))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_token_is_copied_to_nodes(name):
    (config,) = documents(f"ray-up/{name}.yaml")
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", NAMES)
def test_who_submits_shows_the_token(name):
    """Ray's client of jobs looks for it in this mode alone, and the job server answers 401 without."""
    text = (CLUSTER / f"ray-up/{name}.yaml").read_text()
    assert 0 < text.index("#   export RAY_AUTH_MODE=token\n") < text.index("ray job submit")


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_containers_of_workers_have_the_gpus_and_the_token_where_the_image_looks_for_it(name):
    (config,) = documents(f"ray-up/{name}.yaml")
    assert config["docker"]["worker_run_options"] == ["--gpus all"]
    # Ray expands ~ of file_mounts by the image's HOME, which `USER` alone does not set.
    assert "ENV HOME=/home/ray\nUSER 1000" in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_workers_are_spot_instances_that_come_when_they_are_asked_for(name):
    (config,) = documents(f"ray-up/{name}.yaml")
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu-spot"]["min_workers"] == 0
    assert "spot" in str(types["gpu-spot"]["node_config"]).lower()
    assert types["gpu-spot"]["max_workers"] == config["max_workers"]
