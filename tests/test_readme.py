"""What the README and docs tell people to type and where they send them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from datadream.cli.overrides import config_of, dotted
from datadream.cli.parser import make_parser
from datadream.config import ExperimentConfig, knobs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.removeprefix(".venv/bin/")
        for page in PAGES
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if re.match(r"(\.venv/bin/)?datadream ", line)
    }
)


def anchors(page: Path) -> set[str]:
    """Headings as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    if words[1].startswith("runs/"):
        words.insert(1, "--run")
    arguments, overrides = make_parser().parse_known_args(words)
    changes = dotted(overrides, arguments.run) if overrides else {}
    if {"--from", "--extend"} & set(words):  # understood as far as the run that is not here
        with pytest.raises(FileNotFoundError, match="no run at"):
            config_of(arguments, changes)
    elif arguments.command == "run":
        assert isinstance(config_of(arguments, changes), ExperimentConfig)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_knobs_that_are_named_exist(page):
    known, groups = set(knobs(ExperimentConfig)), tuple(ExperimentConfig.model_fields)
    named = re.findall(rf"`((?:{'|'.join(groups)})\.[a-z_.]+)[`=]", page.read_text())
    assert {
        name for name in named if name not in known and not any(key.startswith(f"{name}.") for key in known)
    } == set()
