"""Whatever is killed, the same command ends with the files of a quiet run."""

from __future__ import annotations

import subprocess

import pytest

from tests import kills

WATCHDOG_SECONDS = 2400

pytestmark = [pytest.mark.soak, pytest.mark.timeout(WATCHDOG_SECONDS + 60)]


def test_whatever_is_killed_the_same_command_ends_with_the_files_of_a_quiet_run(pipeline_folder, tmp_path):
    command, quiet = kills.command(pipeline_folder, tmp_path), tmp_path / "quiet"
    subprocess.run([*command, str(quiet)], check=True, stdout=subprocess.DEVNULL)
    outcome = kills.Storm(command, tmp_path / "run", seed=0).blow(quiet)
    assert len(outcome.killed) == 12
    assert (outcome.differ, outcome.twice, outcome.left_behind) == ([], [], [])
