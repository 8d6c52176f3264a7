"""The sbatch script: what its linter says, and a real run on a Slurm of two nodes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cluster.documents import BIN, CLUSTER, ROOT
from tests.cluster.slurm import slurm, why_not

SCRIPT = CLUSTER / "slurm" / "run.sbatch"
RUN = ["--recipe", "digits", "--until", "adapt", "data.n_shots=2", "cluster.device=cpu"]
RUN += ["adapt.steps_per_class=4", "adapt.adapters_per_step=1"]


def test_shellcheck_has_nothing_to_say():
    # Not its notes: it takes what a trap calls for unused, and a script that another shell is given for a mistake.
    command = [BIN / "shellcheck", "--severity=warning", "--color=never", SCRIPT]
    said = subprocess.run(command, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.skipif(why_not() is not None, reason=f"no job was run on Slurm: {why_not()}")
def test_a_job_whose_time_is_over_queues_itself_again_and_goes_on_from_there(tmp_path, monkeypatch):
    """Also: both nodes work, the exit code is the run's, and no process or folder of the job is left."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    log, run = tmp_path / "job.log", tmp_path / "run"
    with slurm(tmp_path) as user:
        options = ["--nodes=2", "--cpus-per-task=4", f"--output={log}"]
        job = user.submit(*options, SCRIPT, "--run", run, *RUN, cwd=ROOT)
        try:
            user.wait_until(lambda: any(run.glob("adapters/class-*/adapter.json")), 120, log)
            user.call("scancel", "--batch", "--signal=USR1", job)
            user.wait_until(lambda: user.job(job)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT"), 200, log)
            ended = user.job(job)
        finally:
            user.call("scancel", job)
            user.wait_until(lambda: not user.call("squeue", "--noheader"), 60, log)  # what it started is gone
    said = log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), said
    assert f"queued again as {job}" in said
    assert len(json.loads((run / "adapters" / "index.json").read_text())) == 10
    assert not Path(f"/tmp/ray-{job}").exists()
