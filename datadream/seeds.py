"""The one place where random seeds come from.

A seed is a hash of (run seed, stage, class or adapter, index): no result depends on which worker did the work or when.
"""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, stage: str, *path: int | str) -> int:
    """A seed in [0, 2**63) for one random decision."""
    text = "/".join(map(str, (run_seed, stage, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
