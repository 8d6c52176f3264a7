"""The image and the services of one machine: what linters say, and what reaches the build."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch

import yaml

from tests.cluster.documents import BIN, CLUSTER, ROOT, pins, project

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()


def test_hadolint_has_nothing_to_say():
    said = subprocess.run([BIN / "hadolint", "--no-color", CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


def test_what_the_image_copies_exists_and_is_all_that_reaches_the_build():
    copied = {name for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert {name.split("/")[0] for name in copied} == sent
    assert not any(fnmatch(name, pattern) for pattern in sent for name in (".env", "runs", "photos", ".git", ".venv"))


def test_the_image_has_a_python_of_the_project_and_pinned_packages():
    (python,) = re.findall(r"^FROM python:3\.(\d+)-", DOCKERFILE, re.MULTILINE)
    least, limit = re.findall(r"3\.(\d+)", project()["requires-python"])
    assert int(least) <= int(python) < int(limit)
    installs = re.findall(r"pip install ([^\n]*)", DOCKERFILE)
    assert all("--constraint constraints.txt" in install or "--no-deps" in install for install in installs)
    (line,) = re.findall(r"'\.\[([\w,]+)\]' ([\w ]+)$", DOCKERFILE, re.MULTILINE)
    extras = line[0].split(",")
    assert all(extra in project()["optional-dependencies"] for extra in extras)
    assert all(package in pins() for package in ["pillow_heif", *line[1].split()])


def test_the_user_of_the_image_is_not_root_by_number():
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == ["1000"]


def test_compose_knows_every_key():
    command = [BIN / "docker-compose", "--file", CLUSTER / "compose.yaml", "--profile", "*", "config"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    services = yaml.safe_load(said.stdout)["services"]
    assert set(services) == {"cpu", "gpu"}
    for name, service in services.items():
        assert service["build"]["args"] == {"DEVICE": name}
        assert (ROOT / service["build"]["dockerfile"]).samefile(CLUSTER / "Dockerfile")
        # Ray's store is 30 % of the memory, at most 10 GB, and goes to the disk where /dev/shm is smaller.
        assert int(service["shm_size"]) > 10**10


def test_compose_holds_names_of_secrets_and_no_values():
    services = yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert set(service["environment"].values()) == {None}
