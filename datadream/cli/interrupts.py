"""How a command is interrupted, and what it says then."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SAID = "said"
"""Of an interrupt: the user has been told."""


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Take the signals with which schedulers and closed terminals end a command for what Ctrl-C is.

    Then all is as before: who calls `main` from Python has signals and logs of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup and the like start a command with a signal ignored, and mean it.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    disabled, excepthook = logging.root.manager.disable, threading.excepthook
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in ours.items():
            if handler is not None:  # one that was not set from Python cannot be set again from it
                signal.signal(number, handler)
        logging.disable(disabled)
        threading.excepthook = excepthook


def _interrupt(number: int, frame: object) -> None:
    # At once and not when all is closed: `ray job stop` kills after 3 s, and Ray alone may take as long to shut down.
    say_interrupted()
    # These are the last words: what is cut off and what Ray or a tracker's thread misses from now on is no news.
    logging.disable()
    threading.excepthook = lambda _: None
    raise KeyboardInterrupt(SAID)


def say_interrupted() -> None:
    line = f"datadream: interrupted. The same command goes on from here: {typed()}\n"
    # Not by print: a signal may come in the midst of another one.
    os.write(sys.stderr.fileno(), line.encode())


def typed() -> str:
    """The command that runs now, as it can be given again."""
    is_installed_script = os.path.basename(sys.argv[0]) == "datadream"
    return shlex.join(sys.orig_argv[1:] if is_installed_script else sys.orig_argv)
