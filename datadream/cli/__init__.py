"""The command line: `datadream run --recipe digits --run runs/demo adapt.rank=8`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from datadream.cli.commands import prepare
from datadream.cli.interrupts import SAID, ended_like_ctrl_c, say_interrupted, typed
from datadream.cli.parser import COMMANDS, DEBUG, RESUMABLE_COMMANDS, WITHOUT_RUN, make_parser

# 130 is what shells give to a command that Ctrl-C ended.
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
# What checks raise about the values and paths that a user gave; ImportError is fsspec's for a URL whose scheme needs
# another package. Once work has begun the same types may mean anything.
BAD_INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError)


def main(argv: Sequence[str] | None = None, *, ends_process: bool = False) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad input (no work was begun), 130 interrupted.

    Without `argv` it is the process's own command. `ends_process` says that the process ends with it, as it then does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # `status runs/demo` is short for `status --run runs/demo`; a word with = is a knob.
    takes_run = words[:1] and words[0] in COMMANDS and words[0] not in WITHOUT_RUN
    if takes_run and len(words) > 1 and not words[1].startswith("-") and "=" not in words[1]:
        words.insert(1, "--run")
    arguments, overrides = make_parser().parse_known_args(words)
    _quiet_libraries()
    ends_process = ends_process or argv is None
    if ends_process:
        # A thread that is still at work when Ray is shut down must not start it anew, as Ray does for any call.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    with ended_like_ctrl_c(ends_process):
        code = _carry_out(arguments, overrides)
    if ends_process:
        # Else Python looks for garbage among all objects several times before it ends: 1.6 s in place of 0.3 s with
        # what a run has imported, of the 3 s after which `ray job stop` kills.
        gc.freeze()
    return code


def _carry_out(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    work = None
    try:
        work = prepare(arguments, overrides)
        work()
    except KeyboardInterrupt as interrupt:
        if interrupt.args != (SAID,):
            say_interrupted()
        return INTERRUPTED
    except Exception as error:  # whatever it is, users get a sentence, and scripts an exit code
        if arguments.debug or os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exc()
        # Here and not above, as the other rooms: `recipes` and `--help` answer without what these import.
        from datadream.experiment.checks import RefusedError

        nothing_done = work is None or isinstance(error, RefusedError)
        is_bad_input = nothing_done and isinstance(error, BAD_INPUT_ERRORS)
        print(f"datadream: {_sentence(error)}", file=sys.stderr)
        if not nothing_done and arguments.command in RESUMABLE_COMMANDS:
            print(f"What is committed is kept: the same command goes on from there: {typed()}", file=sys.stderr)
        return BAD_INPUT if is_bad_input else FAILED
    return 0


def _sentence(error: Exception) -> str:
    """What went wrong, for people. Our own errors are sentences already; of others, which may be bugs, the type says
    more than the message."""
    # The text of what Ray raises for a task is the whole remote traceback; `cause` is what the task raised.
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, (*BAD_INPUT_ERRORS, RuntimeError, OSError)) and str(cause):
        return str(cause)
    first_line = next(iter(str(cause).strip().splitlines()), "")
    return f"unexpected {type(cause).__name__}: {first_line} (--debug or {DEBUG}=1 shows the traceback)"


def _quiet_libraries() -> None:
    """Silence the notices of libraries, so that a user reads one progress line per stage and our own warnings."""
    # A log is read on other days, a terminal at once.
    date = "%H:%M:%S" if sys.stderr.isatty() else "%Y-%m-%d %H:%M:%S"
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt=date)
    logging.getLogger("datadream").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # These read their level when they are imported, so that it is set here and not through logging.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for library in ("HF_HUB", "HF_DATASETS"):
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
