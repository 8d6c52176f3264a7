"""An sshd of our own on this machine's loopback addresses, whose users have another home than theirs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.processes import ended, free_ports

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync")


def why_not() -> str | None:
    """What is missing here for an sshd of our own; None when nothing is."""
    missing = [program for program in PROGRAMS if not _find(program)]
    if missing:
        return f"needs {', '.join(missing)} (Debian's openssh-server and rsync)"
    return None if os.geteuid() == 0 else "sshd needs root"


@contextmanager
def sshd(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A private key that may log in as root, and the environment in which `ssh` finds this sshd.

    Home is `folder`/home on both sides, so that nothing of the real one is read or written.
    """
    home, key = folder / "home", folder / "key"
    programs = home / "bin"
    programs.mkdir(parents=True)
    for name in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (port,) = free_ports(1)
    # `ray up` knows of no other port than 22.
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {_find("ssh")} -p {port} "$@"\n')
    (programs / "ssh").chmod(0o755)
    (home / ".bash_profile").write_text(f'PATH="{programs}:{os.environ["PATH"]}"\n')
    (home / ".bashrc").touch()
    config = [
        "ListenAddress 127.0.0.1",
        "ListenAddress 127.0.0.2",
        f"Port {port}",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'key.pub'}",
        f"SetEnv HOME={home}",
        f"PidFile {folder / 'sshd.pid'}",
        "PermitRootLogin prohibit-password",
        "StrictModes no",
        "UsePAM no",
    ]
    (folder / "sshd_config").write_text("\n".join(config) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    command = [_find("sshd"), "-D", "-f", folder / "sshd_config", "-E", folder / "sshd.log"]
    daemon = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, (folder / "sshd.log").read_text()
            time.sleep(0.1)
        yield key, os.environ | {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
    finally:
        ended(daemon)


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
