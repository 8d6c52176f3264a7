"""Drawing beside training: workers that no adapter needs draw the classes whose adapters are there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from datadream.methods import AdapterSpec
from datadream.runtime.session import Workers

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 5.0


def spare_workers(workers: Workers, missing: Sequence[AdapterSpec]) -> int:
    """Workers that training the missing adapters will never ask for, so that neither stage waits for the other's."""
    # An adapter of several classes is trained by all workers.
    if not missing or workers.shares_cores or any(spec.n_classes > 1 for spec in missing):
        return 0
    return workers.slots - min(workers.count, len(missing))


def train_beside_drawing(train: Callable[[], None], draw: Callable[[], None]) -> None:
    """Train, and `draw` a little again and again until the training has ended; what `train` raises is raised."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            ended.set_result(train())
        except BaseException as error:
            ended.set_exception(error)

    # A daemon: what interrupts the drawing must not wait for the training.
    threading.Thread(target=run, daemon=True).start()
    while not wait([ended], timeout=SECONDS_BETWEEN_LOOKS).done:
        try:
            draw()
        except RuntimeError as error:
            log.warning("%s\nThese are drawn again after the training.", error)
            break
    ended.result()
