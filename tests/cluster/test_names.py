"""What the files of cluster/ name is there: files, commands, options, ports, knobs and versions."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from ray._private import ray_constants
from ray.scripts.scripts import cli as ray_cli

from datadream.cli.parser import COMMANDS
from datadream.config import ExperimentConfig, knobs
from tests.cluster.documents import FILES, ROOT, pins, project

OWN_FILE = re.compile(r"(?<![\w./-])(?:/opt/datadream/)?((?:jobs|cluster|datadream)/[\w./-]+\.\w+|constraints\.txt)")
RAY_COMMAND = re.compile(
    r"\bray (start|stop|up|down|dashboard|status|health-check|get-auth-token|job \w+|metrics [\w-]+)\b"
)
OPTION = re.compile(r"(?<=\s)--[a-z][\w-]+")
KNOB = re.compile(r"(?<![\w./-])((?:adapt|generate|classify|cluster|data|diffusion)\.(?!yaml\b)[a-z_]+)\b(?![./])")


def text(path: Path) -> str:
    """With lines that are continued put together, comments or not."""
    return re.sub(r"\\\n#?\s*", "", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_exist(path):
    for name in OWN_FILE.findall(text(path)):
        assert (ROOT / name).is_file(), name


def test_every_file_says_how_it_is_used():
    """JSON has no comments; its own description does."""
    for path in FILES:
        lines = text(path).splitlines()
        assert lines[0].startswith("#") or path.suffix == ".json", path
        assert path.suffix in (".json",) or len(lines[0]) > 40 or len(lines[1]) > 40, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_of_ray_and_their_options_exist(path):
    for line in text(path).splitlines():
        for words in (found.split() for found in RAY_COMMAND.findall(line)):
            command: click.Command = ray_cli
            for word in words:
                assert isinstance(command, click.Group)
                assert word in command.commands, line
                command = command.commands[word]
            if words[0] != "start":
                continue
            known = {option for parameter in command.params for option in parameter.opts}
            given = OPTION.findall(re.split(r"\bray start", line)[1].split(" && ")[0])
            assert set(given) <= known, set(given) - known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_and_knobs_of_datadream_exist(path):
    for command in re.findall(r"[`/]datadream (\w+)", text(path)):
        assert command in COMMANDS
    for name in KNOB.findall(text(path)):
        assert name in knobs(ExperimentConfig), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ports_are_those_of_ray(path):
    """6379 and 8265 are where Ray listens unless told otherwise; 8080 is where KubeRay has it tell its metrics."""
    ports = {int(port) for port in re.findall(r"(?:--port=|containerPort: |127\.0\.0\.1:|\bport )(\d+)", text(path))}
    assert ports <= {ray_constants.DEFAULT_PORT, ray_constants.DEFAULT_DASHBOARD_PORT, 8080}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_installed_is_pinned(path):
    """By constraints.txt; what a cloud's own autoscaler needs beyond it is not part of the product."""
    for line in re.findall(r"pip install (.*)", text(path)):
        if "--no-deps" in line:
            continue
        assert re.search(r"--constraint \S*constraints\.txt", line), line
        for extra in re.findall(r"'\.\[(\w+)\]'", line):
            assert extra in project()["optional-dependencies"]
    for name, version in re.findall(r"\b(ray|torch|python)[=:] ?[\"']?(\d+\.\d+\.\d+)", text(path), re.IGNORECASE):
        assert pins()[name.lower()] == version


def test_no_credentials_and_no_image_without_a_tag():
    for path in FILES:
        assert not re.search(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KEY", text(path)), path
        assert ":latest" not in text(path), path
