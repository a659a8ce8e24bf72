"""One logger, aware of the rank it speaks for."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from loguru import logger

__all__ = ["log_to", "logger"]

_LINE = "{time:HH:mm:ss} {level: <7} {extra[rank]}{message}"
_ORDER = ["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"]

logger.configure(extra={"rank": ""})


def log_to(
    folder: Path | None,
    *,
    level: str,
    rank: int,
    world: int,
    print_ranks: Collection[int] | Literal["*"],
    file_ranks: Collection[int] | Literal["*"],
) -> None:
    """From now on this process prints to standard error, and appends to ``folder/rank_<n>.log``, as its rank may."""
    logger.remove()
    logger.configure(extra={"rank": f"[rank {rank}] " if world > 1 else ""})
    if print_ranks == "*" or rank in print_ranks:
        logger.add(sys.stderr, level=level, format=_LINE)
    if folder is not None and (file_ranks == "*" or rank in file_ranks):
        folder.mkdir(parents=True, exist_ok=True)
        least = min(level, "INFO", key=_ORDER.index)
        logger.add(folder / f"rank_{rank}.log", level=least, format="{time} {level: <7} {extra[rank]}{message}")
