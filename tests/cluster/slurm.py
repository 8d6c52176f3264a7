"""A Slurm of two nodes on this machine: its own munged, slurmctld and two slurmd, as root, all gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ended, free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("n1", "n2")
SECONDS_TO_START = 60.0

CONFIG = """\
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller_port}
AuthType=auth/munge
# A job that is queued again begins when its old credentials have expired: in two minutes, if not told otherwise.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=15
"""


def why_not() -> str | None:
    """What is missing here for a Slurm of our own; None when nothing is."""
    missing = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
    if missing:
        return f"needs {', '.join(missing)} (Debian's slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Slurm:
    """What a user does."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def call(self, *command: str | Path, cwd: Path | None = None) -> str:
        done = subprocess.run(command, env=self._environment, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str | Path, cwd: Path) -> str:
        return self.call("sbatch", "--parsable", *arguments, cwd=cwd)

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells, by name."""
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, reached: Callable[[], bool], seconds: float, log: Path) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
            time.sleep(0.2)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Its daemons log into `folder`."""
    controller, *nodes = free_ports(1 + len(NODES))
    host = socket.gethostname()
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4"
        for name, port in zip(NODES, nodes, strict=True)
    ]
    lines.append(f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP")
    # The number gives the job's port and folder, which another Slurm on this machine may have taken.
    config = CONFIG.format(host=host, folder=folder, controller_port=controller, first_job=os.getpid())
    (folder / "slurm.conf").write_text(config + "\n".join(lines) + "\n")
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    # --force: the folder's parents may be written by others, which is of no matter in a test.
    at = {f"--{name}={folder}/munge/{file}" for name, file in MUNGE_FILES}
    commands = [["munged", "--foreground", "--force", *at], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", name] for name in NODES]
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}-{len(daemons)}.log", "w") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(0.5)
        user, deadline = Slurm(environment), time.monotonic() + SECONDS_TO_START
        while user.call("sinfo", "--noheader", "--format=%T%D") != f"idle{len(NODES)}":
            assert time.monotonic() < deadline, user.call("sinfo", "--long", "--Node")
            time.sleep(0.5)
        yield user
    finally:
        for daemon in reversed(daemons):
            ended(daemon)


MUNGE_FILES = (
    ("key-file", "key"),
    ("socket", "socket"),
    ("pid-file", "pid"),
    ("log-file", "log"),
    ("seed-file", "seed"),
)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
