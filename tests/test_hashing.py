"""Seeds depend on what they are for, and on nothing else."""

import subprocess
import sys

from datadream.hashing import derive_seed


def test_equal_in_every_process():
    code = "from datadream.hashing import derive_seed; print(derive_seed(3, 'image', 1, 2))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == derive_seed(3, "image", 1, 2)


def test_no_two_decisions_share_a_seed():
    seeds = {
        derive_seed(run, stage, c, i) for run in range(3) for stage in ("a", "b") for c in range(20) for i in range(20)
    }
    assert len(seeds) == 3 * 2 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
