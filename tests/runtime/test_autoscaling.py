"""What an autoscaler is asked for where it starts nothing for a request of which it may not start all."""

from __future__ import annotations

import pytest
from ray.exceptions import RpcError

from datadream.runtime import autoscaling
from datadream.runtime.autoscaling import MOST_ASKED, SECONDS_BETWEEN_ANSWERS, Request
from datadream.runtime.workers import Workers


class Autoscaler:
    """It may start `most` GPUs, answers from `awake` on, and may not answer at all at some `silent` moments.

    Another user of the cluster may ask for nothing every `other` seconds, which counts until we ask again.
    """

    def __init__(
        self, most: int, awake: float = 0.0, silent: tuple[float, float] = (0.0, 0.0), other: float = float("inf")
    ) -> None:
        self._most, self._awake, self._silent, self._other = most, awake, silent, other
        self.now, self.asked, self.seen = 0.0, 0, list[int]()

    def request_resources(self, bundles: list) -> None:
        self.asked = len(bundles)

    def monotonic(self) -> float:
        return self.now

    def refused(self) -> int | None:
        if self._silent[0] <= self.now < self._silent[1]:
            return None
        return self.seen[-1] if self.now >= self._awake and self.seen[-1] > self._most else 0

    def settled(self, monkeypatch, wanted: int, seconds: float = 600.0) -> int:
        """What is asked for in the end."""
        monkeypatch.setattr(autoscaling, "request_resources", self.request_resources)
        monkeypatch.setattr(autoscaling, "time", self)
        monkeypatch.setattr(autoscaling.Request, "_n_refused", lambda _: self.refused())
        request = Request(Workers(1, 1, True), wanted)
        request.ask()
        while self.now < seconds:
            self.now += SECONDS_BETWEEN_ANSWERS
            if self.now % self._other == 0:
                self.asked = 0
            self.seen.append(self.asked)
            request.look()
        return self.asked


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("most", "wanted", "granted"),
    [(16, 1000, 16), (30, 1000, 30), (1, 7, 1), (7, 7, 7), (8, 7, 7), (0, 5, 1), (5000, 5000, MOST_ASKED)],
)
def test_as_many_as_it_may_start(monkeypatch, most, wanted, granted):
    assert Autoscaler(most).settled(monkeypatch, wanted) == granted


@pytest.mark.usefixtures("local_ray")
def test_a_refusal_that_comes_late_is_heard(monkeypatch):
    """An autoscaler that is still to start has refused nothing yet."""
    assert Autoscaler(16, awake=100.0).settled(monkeypatch, 1000) == 16
    assert Autoscaler(16, silent=(20.0, 90.0)).settled(monkeypatch, 1000) == 16


@pytest.mark.usefixtures("local_ray")
def test_ray_that_is_away_for_a_moment_ends_no_request(monkeypatch, caplog):
    """Heads start anew: the next look asks again, and the end of the block fails nothing."""
    asked = []

    def away(bundles):
        asked.append(bundles)
        raise RpcError("deadline exceeded")

    monkeypatch.setattr(autoscaling, "request_resources", away)
    autoscaling._ask_for([{"GPU": 1}])
    assert asked == [[{"GPU": 1}]]
    assert "the autoscaler cannot be asked: deadline exceeded" in caplog.text


def test_a_request_that_is_replaced_every_20_seconds_counts_for_most_of_the_time(monkeypatch):
    """As by the coordinator that Ray's own libraries leave behind, which asks for nothing when they are done."""
    autoscaler = Autoscaler(16, other=20.0)
    assert autoscaler.settled(monkeypatch, 1000) == 16
    assert autoscaler.seen[-40:].count(16) >= 30
