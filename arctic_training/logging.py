"""One logger, aware of the rank it speaks for."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from loguru import logger

from arctic_training.secrets import hide

__all__ = ["log_to", "logger", "print_log"]

_LINE = "{time:HH:mm:ss} {level: <7} {extra[rank]}{message}"
_FILED = "{time} {level: <7} {extra[rank]}{message}"
_ORDER = ["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"]

Ranks = Collection[int] | Literal["*"]

_held: list[str] = []
"""What was said before there was a file for it."""


def _hide(record: Any) -> None:
    record["message"] = hide(record["message"])


logger.configure(extra={"rank": ""}, patcher=_hide)


def print_log(*, level: str, rank: int, world: int, ranks: Ranks) -> None:
    """From now on this process prints to standard error, as its rank may, and keeps what is for the file."""
    logger.remove()
    _held.clear()
    logger.configure(extra={"rank": f"[rank {rank}] " if world > 1 else ""})
    if ranks == "*" or rank in ranks:
        logger.add(sys.stderr, level=level, format=_LINE)
    logger.add(_held.append, level=min(level, "INFO", key=_ORDER.index), format=_FILED)


def log_to(folder: Path, *, level: str, rank: int, ranks: Ranks) -> None:
    """Append to ``folder/rank_<n>.log`` too, as the rank may, beginning with what was kept since `print_log`."""
    if ranks == "*" or rank in ranks:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{rank}.log"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_held)
        logger.add(path, level=min(level, "INFO", key=_ORDER.index), format=_FILED)
    _held.clear()
