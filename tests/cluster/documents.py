"""The files of cluster/, as data."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
BIN = ROOT / ".venv" / "bin"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())


def documents(name: str) -> list[dict[str, Any]]:
    """Those of a YAML file."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pins() -> dict[str, str]:
    """Versions by package, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
