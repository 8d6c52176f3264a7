"""One policy for all stages: errors are told apart, passing ones retried, and who fails too often is left out."""

import errno
import logging

import httpx2
import pytest
import requests
import torch
from aiohttp import ServerDisconnectedError
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from datadream.run.store import RunStore
from datadream.runtime.failures import GIVE_UP_AFTER, Failure, Kind, Ledger, describe, finish, kind_of, retried


class HubError(Exception):
    """As huggingface_hub's, which is no OSError and has the server's answer."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"{status_code} Client Error")
        self.response = type("Response", (), {"status_code": status_code})()


class GcsError(Exception):
    """As gcsfs.retry.HttpError: no OSError, with a code of its own."""

    __module__ = "gcsfs.retry"

    def __init__(self, code: int) -> None:
        super().__init__("HttpError")
        self.code = code


class BrokenFile(OSError):
    """As Pillow's for what it cannot decode: an OSError without a number."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EBUSY, "SlowDown"), Kind.PASSING),  # s3fs
        (OSError(errno.ESTALE, "Stale file handle"), Kind.PASSING),  # NFS
        (OSError(getattr(errno, "EREMOTEIO", errno.EIO), "We encountered an internal error"), Kind.PASSING),  # s3fs
        (OSError(errno.EIO, "502"), Kind.PASSING),  # s3fs, for what it does not know
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), Kind.PASSING),  # a mount without its server
        (OSError(errno.EROFS, "Read-only file system"), Kind.HOST),
        (GcsError(503), Kind.PASSING),
        (GcsError(400), Kind.UNIT),
        (httpx2.ConnectError("no route"), Kind.PASSING),  # huggingface_hub
        (requests.exceptions.ProxyError("502"), Kind.PASSING),  # gcsfs
        (TimeoutError(), Kind.PASSING),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), Kind.PASSING),
        (EndpointConnectionError(endpoint_url="http://s3"), Kind.PASSING),
        (ReadTimeoutError(endpoint_url="http://s3"), Kind.PASSING),
        (ServerDisconnectedError(), Kind.PASSING),
        (HubError(429), Kind.PASSING),
        (HubError(503), Kind.PASSING),
        (HubError(404), Kind.UNIT),
        (FileNotFoundError(errno.ENOENT, "photos/cat"), Kind.HOST),
        (NotADirectoryError("photos"), Kind.HOST),
        (PermissionError("photos"), Kind.HOST),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Kind.HOST),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Kind.HOST),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), Kind.HOST),
        (RuntimeError("No CUDA GPUs are available"), Kind.HOST),
        (RuntimeError("size mismatch"), Kind.UNIT),
        (ValueError("photo 'x' cannot be decoded"), Kind.UNIT),
        (FloatingPointError("the loss became nan"), Kind.UNIT),
        (BrokenFile("image file is truncated"), Kind.UNIT),
        (OSError(errno.ENOSPC, "No space left on device"), Kind.UNIT),
        (KeyError("name"), Kind.UNIT),
        (MemoryError(), Kind.UNIT),
    ],
    ids=repr,
)
def test_kinds_of_errors(error, kind):
    assert kind_of(error) is kind


def test_a_failure_says_its_type_unless_the_message_says_it_all():
    assert describe(ValueError("photo 'x'\n  is empty")) == "photo 'x' is empty"
    assert describe(KeyError("name")) == "KeyError: 'name'"
    assert describe(ValueError()) == "ValueError: "
    assert Failure.of(FileNotFoundError("no photos")) == Failure(Kind.HOST, "FileNotFoundError: no photos")


def failing(*errors: Exception):
    """A piece of work that fails so often, and then succeeds."""
    waiting = list(errors)

    def work() -> str:
        if waiting:
            raise waiting.pop(0)
        return "done"

    return work


def test_passing_faults_are_retried_and_told(caplog):
    busy = OSError(errno.EBUSY, "SlowDown")
    with caplog.at_level(logging.WARNING):
        assert retried(failing(busy, busy), "photo 'x'", pauses=(0, 0)) == "done"
    assert caplog.messages == ["photo 'x': OSError: [Errno 16] SlowDown; trying again in 0 s"] * 2


def test_passing_faults_that_outlast_the_pauses_are_raised():
    with pytest.raises(TimeoutError, match="third"):
        retried(failing(TimeoutError("first"), TimeoutError("second"), TimeoutError("third")), "x", pauses=(0, 0))
    with pytest.raises(TimeoutError, match="first"):
        retried(failing(TimeoutError("first")), "x", pauses=())


@pytest.mark.parametrize("error", [ValueError("broken"), FileNotFoundError("gone")])
def test_nothing_else_is_retried(error):
    work = failing(error)
    with pytest.raises(type(error)):
        retried(work, "x", pauses=(0, 0))
    assert work() == "done"


def test_a_unit_is_given_up_after_three_losses_in_a_row():
    ledger: Ledger[str] = Ledger()
    ledger.lose("a", "a node died.")
    ledger.lose("b", "a node died.")
    ledger.lose("a", "a node died.")
    ledger.advance("a")  # it got further meanwhile
    for _ in range(GIVE_UP_AFTER - 1):
        ledger.lose("a", "a node died.")
    assert ledger.given_up == {}
    ledger.lose("a", "its worker was killed.")
    assert ledger.given_up == {"a": f"given up after {GIVE_UP_AFTER} attempts: its worker was killed."}


def test_a_units_own_fault_is_final_at_once_unless_somebody_does_it_after_all():
    ledger: Ledger[str] = Ledger()
    ledger.fail("a", "photo 'x' is empty")
    assert ledger.given_up == {"a": "photo 'x' is empty"}
    ledger.succeed("node", "a")
    assert ledger.given_up == {}


def test_a_place_is_left_out_after_three_units_in_a_row_and_told_of_once():
    ledger: Ledger[str] = Ledger()
    # One unit that fails again and again says more of the unit than of the place.
    for key in ("a", "a", "b"):
        ledger.blame("node", "no photos", key)
        assert ledger.left_out == {}
    ledger.blame("node", "no photos", "c")
    assert ledger.left_out == {"node": "no photos"}
    ledger.blame("node", "no weights either", "d")
    assert ledger.left_out == {"node": "no photos"}
    assert ledger.suspects == {"node"}


def test_success_clears_a_place_of_suspicion():
    ledger: Ledger[str] = Ledger()
    for key in ("a", "b"):
        ledger.blame("node", "a time-out", key)
    ledger.succeed("node", "c")
    assert ledger.suspects == set()
    for key in ("d", "e"):
        ledger.blame("node", "a time-out", key)
    assert ledger.left_out == {}


def test_a_place_that_cannot_start_is_left_out_and_costs_no_unit():
    ledger: Ledger[str] = Ledger()
    for _ in range(GIVE_UP_AFTER):
        assert ledger.left_out == {}
        ledger.blame("node", "no model")
    assert ledger.left_out == {"node": "no model"}
    assert ledger.given_up == {}


def test_the_message_names_a_few_and_the_file_all(tmp_path):
    store, failures = RunStore(str(tmp_path)), [f"unit {number}: broken {number}" for number in range(12)]
    with pytest.raises(RuntimeError, match="12 of 20 units failed:\n  unit 0: broken 0\n") as failed:
        finish(store, "stages/failed.json", failures, "12 of 20 units")
    assert "unit 9" in str(failed.value)
    assert "unit 10" not in str(failed.value)
    assert str(failed.value).endswith(f"All are listed in {store.path('stages/failed.json')}.")
    assert store.read_json("stages/failed.json") == failures
    finish(store, "stages/failed.json", [], "none")
    assert not store.exists("stages/failed.json")
    finish(store, "stages/failed.json", [], "none")


def test_what_failed_alike_is_told_once(tmp_path):
    failures = [f"class {number}: no such folder: x" for number in range(9)] + ["class 9: broken"]
    with pytest.raises(RuntimeError) as failed:
        finish(RunStore(str(tmp_path)), "failed.json", failures, "10 of 10 adapters")
    lines = ["class 0, class 1, class 2 and 6 more: no such folder: x", "class 9: broken"]
    assert str(failed.value).splitlines()[1:3] == [f"  {line}" for line in lines]
    assert "All are listed in" in str(failed.value)


def test_a_full_disk_does_not_hide_what_failed(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunStore, "write_json", refuse)
    with pytest.raises(RuntimeError, match="1 of 2 units failed:\n  unit 1: No space left"):
        finish(RunStore(str(tmp_path)), "failed.json", ["unit 1: No space left"], "1 of 2 units")
