"""Hashes by which files and plans are known again. As low as seeds: plans, runs and artifacts all need them."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spec_hash(value: Any) -> str:
    """Hash of plain data, the same in every process."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
