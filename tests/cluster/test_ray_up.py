"""The YAML of `ray up`, against Ray's own schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler

from tests.cluster.documents import documents

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


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_workers_are_spot_instances_that_come_when_they_are_asked_for(name):
    (config,) = documents(f"ray-up/{name}.yaml")
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu-spot"]["min_workers"] == 0
    assert "spot" in str(types["gpu-spot"]["node_config"]).lower()
    assert types["gpu-spot"]["max_workers"] == config["max_workers"]
