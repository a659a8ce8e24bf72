"""Calls of scorers and rewards, which may be services: retries, and errors that all ranks raise alike."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from arctic_training.distributed import collectives
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.errors.types import ScoringError
from arctic_training.logging import logger

T = TypeVar("T")


def retry(call: Callable[[], T], times: int, what: str) -> T:
    """Returns what ``call`` returns. If it raises, it is called up to ``times`` times more, after 1, 2, 4, ... seconds.

    ``what`` names the call in the log. The last call's error is raised.
    """
    for number in range(times):
        record_heartbeat()
        try:
            return call()
        except Exception as error:
            seconds = 2.0**number
            logger.warning(f"{what} failed ({type(error).__name__}: {error}); retrying in {seconds:g} s")
            time.sleep(seconds)
    return call()


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Raises a `ScoringError` of one rank on all of them; all must enter it."""
    message = ""
    try:
        yield
    except ScoringError as error:
        message = str(error)
    if messages := list(filter(None, collectives.all_gather_object(message))):
        raise ScoringError(messages[0])
