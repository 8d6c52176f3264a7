"""How many adapters a CPU trains side by side. Imports nothing heavy: what a run takes is told without Ray."""

from __future__ import annotations

import math

# A CPU's step is bound by arithmetic: of the 2.2 times that 8 adapters side by side are faster than one, 4 have 2.0
# (benchmarks/RESULTS.md), and smaller groups lose less with a worker.
CPU_GROUP = 5
"""Most adapters side by side on a CPU."""


def cpu_group_size(n_adapters: int, slots: int) -> int:
    """As many groups for each of `slots` workers as the largest groups need, and then equal groups: nobody waits for
    the last one."""
    per_worker = math.ceil(n_adapters / (CPU_GROUP * slots))
    return math.ceil(n_adapters / (per_worker * slots))
