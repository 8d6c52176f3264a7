"""Workers that training will never ask for may draw, and neither work can stop the other."""

import threading
from dataclasses import replace

import pytest

from datadream.methods import AdapterSpec
from datadream.overlap import spare_workers, train_beside_drawing
from datadream.runtime.session import Workers


@pytest.fixture(autouse=True)
def looking_often(monkeypatch):
    monkeypatch.setattr("datadream.overlap.SECONDS_BETWEEN_LOOKS", 0.01)


def test_only_workers_that_no_adapter_will_ask_for_are_spare():
    eight = Workers(count=8, threads=1, use_gpu=False, slots=8)
    assert [spare_workers(eight, adapters(n)) for n in (0, 3, 8, 20)] == [0, 5, 0, 0]
    assert spare_workers(replace(eight, count=2), adapters(20)) == 6
    assert spare_workers(replace(eight, shares_cores=True), adapters(3)) == 0
    assert spare_workers(eight, adapters(1, n_classes=10)) == 0


def adapters(n: int, n_classes: int = 1) -> list[AdapterSpec]:
    return [AdapterSpec(f"adapter-{index}", (), n_classes, seed=index) for index in range(n)]


def test_drawing_goes_on_until_the_training_has_ended():
    drawn, enough = [], threading.Event()

    def draw():
        drawn.append(1)
        if len(drawn) == 3:
            enough.set()

    train_beside_drawing(lambda: enough.wait(10), draw)
    assert len(drawn) >= 3


def test_a_failed_drawing_is_given_up_and_the_training_is_waited_for(caplog):
    tried, trained = threading.Event(), []

    def train():
        tried.wait(10)
        trained.append(1)

    def draw():
        tried.set()
        raise RuntimeError("3 chunks failed")

    train_beside_drawing(train, draw)
    assert trained == [1]
    assert "3 chunks failed\nThese are drawn again after the training." in caplog.text


def test_what_the_training_raises_is_raised():
    def train():
        raise ValueError("no adapter was trained")

    with pytest.raises(ValueError, match="no adapter was trained"):
        train_beside_drawing(train, lambda: None)
