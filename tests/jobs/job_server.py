"""A Ray cluster of one node with its job server, on a Python that has everything but this package."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tests.processes import free_ports

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 120.0
SECONDS_TO_END = 30.0
SECONDS_FOR_A_JOB = 400.0
CPUS = 4
"""A quota: Ray Data's tasks beside two workers."""


def python_without_the_package(folder: Path) -> Path:
    """A virtual environment with links to what is installed here, the package and its metadata left out."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "datadream" not in entry.name and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


class JobServer:
    """What a user does with `ray job`."""

    def __init__(self, python: Path, address: str, token: str, environment: dict[str, str]) -> None:
        self._python, self._address, self._environment = python, address, environment
        self.client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})

    def submit(self, *entrypoint: str) -> str:
        """`ray job submit` from the root of the repository; returns the job's id."""
        job, ray = f"job-{secrets.token_hex(4)}", [str(self._python), "-m", "ray.scripts.scripts"]
        ships = ["--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"]
        command = ["job", "submit", "--address", self._address, "--submission-id", job, "--no-wait", *ships, "--"]
        submitted = subprocess.run(
            [*ray, *command, *entrypoint], cwd=ROOT, env=self._environment, capture_output=True, text=True
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        return job

    def wait(self, job: str) -> JobDetails:
        """What became of a job that ends by itself."""
        self.wait_until(lambda: self.client.get_job_status(job).is_terminal(), job)
        return self.client.get_job_info(job)

    def wait_until(self, reached: Callable[[], bool], job: str) -> None:
        deadline = time.monotonic() + SECONDS_FOR_A_JOB
        while not reached():
            assert time.monotonic() < deadline, self.log(job)
            time.sleep(0.1)

    def stop(self, job: str) -> float:
        """`ray job stop`; returns how many seconds it took."""
        asked = time.monotonic()
        self.client.stop_job(job)
        assert self.wait(job).status == JobStatus.STOPPED
        return time.monotonic() - asked

    def log(self, job: str) -> str:
        return self.client.get_job_logs(job)


@contextmanager
def job_server(folder: Path) -> Iterator[JobServer]:
    """Its own ports, token and temporary folder: others may run Ray on this machine."""
    python, token = python_without_the_package(folder / "python"), secrets.token_hex(16)
    (folder / "token").write_text(token)
    # Sockets' paths must be short.
    temporary = tempfile.mkdtemp(prefix="jobs-", dir="/tmp")
    without = ("RAY_ADDRESS", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in without} | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard, agent, clients = free_ports(4)
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    ports.append(f"--ray-client-server-port={clients}")
    size = [f"--num-cpus={CPUS}", "--num-gpus=0", f"--object-store-memory={200 << 20}"]
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={temporary}"]
    with open(folder / "ray.log", "w") as log:
        head = psutil.Popen([*command, *ports, *size], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _listens(dashboard):
            is_late = head.poll() is not None or time.monotonic() > deadline
            assert not is_late, (folder / "ray.log").read_text()
            time.sleep(0.2)
        yield JobServer(python, f"http://127.0.0.1:{dashboard}", token, environment)
    finally:
        processes = [head, *head.children(recursive=True)]
        head.terminate()
        for process in psutil.wait_procs(processes, SECONDS_TO_END)[1]:
            process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
