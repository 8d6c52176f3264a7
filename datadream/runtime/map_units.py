"""How this stage runs Ray Data: without its progress lines, and with a worker's own words when it fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray.data


def quiet_ray_data() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.raise_original_map_exception = True


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Raise what a worker said, not Ray's account of it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        # Ours is the first line; Ray Data appends its retry advice.
        raise RuntimeError(f"{what} images failed: {str(error.cause).splitlines()[0]}") from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"{what} images failed: {error}") from error
