"""What goes wrong, told apart by the kind of error, and what follows: one policy for all stages.

| kind | what follows |
|---|---|
| passing | tried again on the spot, with back-off (`retried`) |
| the unit's own | the unit is named with its cause and given up; the others go on |
| the host's | the unit goes back to the others; the place is left out after a few in a row |
| a loss | the unit goes back; one that costs several workers is given up and named |

A passing fault that outlasts its retries counts as the host's: it may be this node's network that is down.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from datadream.run.store import RunStore

log = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

GIVE_UP_AFTER = 3
"""The one rule for giving up: a unit after so many losses or host's faults, a place after so many host's faults in a
row, each with another unit. Twice can be chance (a node that was drained and then a spot node that was taken)."""
BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts at what a passing fault broke: S3 asks throttled clients to slow down for seconds."""
SHOWN = 10
"""Kinds of failures that a message tells; the file has all failures."""
NAMED = 3
"""Units that it names of those that failed alike."""


class LostPeerError(RuntimeError):
    """Another rank of a data-parallel training is gone; seldom the first to know, and never to blame."""


class Kind(StrEnum):
    PASSING = "passing"
    UNIT = "unit"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit was not done, small enough to travel from a worker."""

    kind: Kind
    reason: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        return cls(kind_of(error), describe(error))


_PASSING_ERRNOS = {
    *(errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH),
    *(getattr(errno, "EREMOTEIO", errno.EIO), errno.EIO, errno.ENOTCONN),  # the first is Linux's alone
}
"""s3fs maps S3's SlowDown and 503 to EBUSY, RequestTimeout to ETIMEDOUT, InternalError to EREMOTEIO, and what it does
not know, such as 502 and 504, to EIO; ESTALE is NFS's, and ENOTCONN that of a mount whose server is gone."""
_HOST_ERRNOS = {errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENODEV}
_CONNECTION_ERRORS = (
    ("botocore.exceptions", "ConnectionError"),  # nobody listens, as while a store starts again
    ("botocore.exceptions", "HTTPClientError"),
    ("aiohttp.client_exceptions", "ClientConnectionError"),
    ("aiohttp.client_exceptions", "ClientPayloadError"),
    ("requests.exceptions", "ConnectionError"),
    ("requests.exceptions", "Timeout"),
    ("google.auth.exceptions", "TransportError"),
    ("httpx", "TransportError"),
    ("httpx2", "TransportError"),
)
"""What clients of object stores raise for a connection; Python's own ConnectionError is no base of theirs."""
_DEVICE_WORDS = ("CUDA error", "CUDA driver", "CUBLAS_", "CUDNN_", "NCCL", "No CUDA GPUs", "no NVIDIA driver")
"""How torch words a broken device in older places that raise a bare RuntimeError."""


def kind_of(error: BaseException) -> Kind:
    """Tell kinds of errors apart; what is not known to be of another kind is the unit's own."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(error).__module__.startswith("gcsfs"):
        status = getattr(error, "code", status)
    if isinstance(error, (TimeoutError, ConnectionError)) or getattr(error, "errno", None) in _PASSING_ERRNOS:
        return Kind.PASSING
    # By the modules that are loaded: who raised one of these has imported its library, which others need not have.
    if any(isinstance(error, getattr(sys.modules.get(module), name, ())) for module, name in _CONNECTION_ERRORS):
        return Kind.PASSING
    if isinstance(status, int) and (status == 429 or status >= 500):  # the Hub's and gcsfs's, which are no OSError
        return Kind.PASSING
    # What one node cannot find or open, another may: photos, weights and run lie on shared storage.
    if isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)):
        return Kind.HOST
    if getattr(error, "errno", None) in _HOST_ERRNOS:
        return Kind.HOST
    torch = sys.modules.get("torch")  # importing it takes seconds, and the queue's process has no use for it
    if torch is not None and isinstance(error, torch.AcceleratorError):
        return Kind.HOST
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _DEVICE_WORDS):
        return Kind.HOST
    return Kind.UNIT


def describe(error: BaseException) -> str:
    """One line: the type, unless the message alone says it all, and the message."""
    text = " ".join(str(error).split())
    says_all = bool(text) and isinstance(error, (ValueError, FloatingPointError, MemoryError))
    return text if says_all else f"{type(error).__name__}: {text}"


def retried(work: Callable[[], T], what: str, pauses: Sequence[float] = BACK_OFF_SECONDS) -> T:
    """Do `work`, again after each pause while only passing faults break it; raises the last error."""
    for pause in pauses:
        try:
            return work()
        except Exception as error:
            if kind_of(error) is not Kind.PASSING:
                raise
            log.warning("%s: %s; trying again in %g s", what, describe(error), pause)
            time.sleep(pause)
    return work()


class Ledger(Generic[K]):
    """Who failed how often: which units are given up, and which places are left out.

    Keys tell units apart; a place is where a worker runs, and what is written of it names the node.
    """

    def __init__(self) -> None:
        self.given_up: dict[K, str] = {}
        """Why, by unit."""
        self.left_out: dict[str, str] = {}
        """Why, by place."""
        self._strikes: Counter[K] = Counter()
        self._faults: dict[str, set[Hashable]] = {}

    def fail(self, key: K, reason: str) -> None:
        """The unit is at fault, and would fail again."""
        self.given_up[key] = reason

    def lose(self, key: K, reason: str) -> None:
        """A worker was lost with the unit: the unit goes back, unless it has cost too many."""
        self._strikes[key] += 1
        if self._strikes[key] >= GIVE_UP_AFTER:
            self.given_up[key] = f"given up after {GIVE_UP_AFTER} attempts: {reason}"

    def blame(self, place: str, reason: str, key: K | None = None, strike: bool = True) -> None:
        """The host is at fault: its unit goes back, and the place is left out after a few units in a row.

        Without a key, the place could not even begin. Several places that fail the same attempt at a unit are one
        `strike` against it.
        """
        if key is not None and strike:
            self.lose(key, reason)
        faults = self._faults.setdefault(place, set())
        # A set, because one unit that fails here again and again says more of the unit than of the place.
        faults.add(f"start {len(faults)}" if key is None else key)
        if len(faults) >= GIVE_UP_AFTER:
            self.left_out.setdefault(place, reason)

    def succeed(self, place: str, key: K) -> None:
        """The place did a unit, so that its earlier faults were not the host's."""
        self._faults.pop(place, None)
        self.given_up.pop(key, None)

    def acquit(self, key: K) -> None:
        """The unit failed wherever it went: it is no longer held against the places."""
        for place, faults in list(self._faults.items()):
            faults.discard(key)
            if not faults:
                del self._faults[place]

    def advance(self, key: K) -> None:
        """The unit got further before its worker was lost: losses count in a row."""
        self._strikes.pop(key, None)

    @property
    def suspects(self) -> set[str]:
        """Places that had a host's fault since they last did a unit."""
        return set(self._faults)


def finish(store: RunStore, file: str, failures: Sequence[str], what: str) -> None:
    """How a stage ends: raises RuntimeError, "`what` failed" and why, after writing all failures to `file`; without
    any, the list of an earlier start is removed. A failure is "name: reason"; those of one reason are told at once."""
    if not failures:
        if store.exists(file):
            store.remove(file)
        return
    with suppress(Exception):  # a full disk, or a store that is away, may be why they failed
        store.write_json(file, list(failures))
    alike: dict[str, list[str]] = {}
    for failure in failures:
        name, _, reason = failure.partition(": ")
        alike.setdefault(reason, []).append(name)
    lines = []
    for reason, names in alike.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"{', '.join(names[:NAMED])}{more}: {reason}")
    few = "\n  ".join(lines[:SHOWN])
    is_cut = len(lines) > SHOWN or max(map(len, alike.values())) > NAMED
    rest = f"\nAll are listed in {store.url_of(file)}." if is_cut else ""
    raise RuntimeError(f"{what} failed:\n  {few}{rest}")
