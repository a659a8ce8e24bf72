"""Calls what may fail for a while, such as a service that judges answers, again."""

import time
from collections.abc import Callable
from typing import TypeVar

from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.logging import logger

T = TypeVar("T")


def retry(call: Callable[[], T], times: int, what: str) -> T:
    """Returns what ``call`` returns. One that raises is called ``times`` more, after 1, 2, 4, ... seconds.

    ``what`` is named in the log. The last call's error is raised.
    """
    for number in range(times):
        record_heartbeat()
        try:
            return call()
        except Exception as error:
            pause = 2.0**number
            logger.warning(f"{what} fails ({type(error).__name__}: {error}); it is tried again in {pause:g} s")
            time.sleep(pause)
    return call()
