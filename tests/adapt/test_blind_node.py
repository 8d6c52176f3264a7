"""The roomiest node of three lacks the photos: the others train everything, and the node is named once."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

WATCHDOG_SECONDS = 400
N_CLASSES = 12

pytestmark = [pytest.mark.soak, pytest.mark.timeout(WATCHDOG_SECONDS + 60)]


def test_the_others_train_all_adapters_and_the_node_is_named_once(pipeline_folder, tmp_path):
    rng = np.random.default_rng(0)
    for label in range(N_CLASSES):
        folder = tmp_path / "home" / "photos" / f"class {label:02d}"
        folder.mkdir(parents=True)
        for index in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    command = [sys.executable, "-m", "tests.adapt.blind_node", str(pipeline_folder), str(tmp_path / "run")]
    process = subprocess.run(
        [*command, str(tmp_path / "home")], capture_output=True, text=True, timeout=WATCHDOG_SECONDS, check=True
    )
    # Ray may print after it.
    told = json.loads(next(line for line in process.stdout.splitlines() if line.startswith('{"done"')))
    assert told["error"] == ""
    assert told["done"] == told["units"]
    assert len(told["done"]) == N_CLASSES
    named = [line for line in told["said"] if "gets no more work" in line]
    assert len(named) == 1
    assert "photos" in named[0]
