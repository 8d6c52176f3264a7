"""How a command is interrupted, and what it says then."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

SAID = "said"
"""Of an interrupt: the user has been told."""
END = b"\0"
"""No signal has the number 0."""


@contextmanager
def ended_like_ctrl_c(ends_process: bool) -> Iterator[None]:
    """Take the signals with which schedulers and closed terminals end a command for what Ctrl-C is.

    Then all is as before: who calls `main` from Python has signals and logs of their own. Only where the process ends
    with the command, nothing more is said after an interrupt: Ray takes seconds to shut down, and threads that still
    wait for it fail meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup and the like start a command with a signal ignored, and mean it.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    disabled, excepthook = logging.root.manager.disable, threading.excepthook
    last_words = _LastWords()
    for number in ours:
        signal.signal(number, last_words.interrupt)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(target=last_words.listen, args=(reader, ours), name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.write(writer, END)  # closing alone would not wake it where a child of a fork holds the pipe too
        listener.join()
        os.close(writer)
        os.close(reader)
        for number, handler in ours.items():
            if handler is not None:  # one that was not set from Python cannot be set again from it
                signal.signal(number, handler)
        if last_words.unsaid or not ends_process:
            logging.disable(disabled)
            threading.excepthook = excepthook


class _LastWords:
    """What is said of an interrupt: once, and at once, not when all is closed.

    `ray job stop` kills after 3 s, and Ray alone may take as long to shut down. Python runs a signal's handler only
    when the main thread comes back from C: a wait in Ray's core looks for signals once a second, and on a loaded
    machine jobs were killed before they had said a word. So a thread, which the signal's own byte wakes, speaks too.
    """

    def __init__(self) -> None:
        self.unsaid = [say_interrupted]

    def listen(self, reader: int, numbers: Collection[int]) -> None:
        """Each signal is a byte, its number, until END comes."""
        while (received := os.read(reader, 1)) != END:
            if received[0] in numbers:
                self.say()

    def interrupt(self, number: int, frame: object) -> None:
        self.say()
        raise KeyboardInterrupt(SAID)

    def say(self) -> None:
        try:
            say = self.unsaid.pop()  # not under a lock: a handler may interrupt a handler that holds it
        except IndexError:
            return
        say()
        # What is cut off and what Ray or a tracker's thread misses from now on is no news.
        logging.disable()
        threading.excepthook = lambda _: None


def say_interrupted() -> None:
    line = f"datadream: interrupted. The same command goes on from here: {typed()}\n"
    # Not by print: a signal may come in the midst of another one.
    os.write(sys.stderr.fileno(), line.encode())


def typed() -> str:
    """The command that runs now, as it can be given again."""
    is_installed_script = os.path.basename(sys.argv[0]) == "datadream"
    return shlex.join(sys.orig_argv[1:] if is_installed_script else sys.orig_argv)
