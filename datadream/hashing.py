"""Hashes by which files and plans are known again, and the seeds that are made of them.

A seed is a hash of (run seed, stage, class or adapter, index): no result depends on which worker did the work or when.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spec_hash(value: Any) -> str:
    """Hash of plain data, the same in every process."""
    # The text that is hashed never changes: markers and plans of old runs are known again by it.
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def derive_seed(run_seed: int, stage: str, *path: int | str) -> int:
    """A seed in [0, 2**63) for one random decision; the one place where seeds come from."""
    # Neither this text nor the bits that are taken ever change: an old run that goes on must draw what it would have
    # drawn.
    text = "/".join(map(str, (run_seed, stage, *path)))
    return int(sha256(text.encode())[:16], 16) >> 1
