"""One logger, aware of the rank it speaks for. It is this package's own: loguru's, which belongs to the program that
uses this package, keeps its sinks, and they hear what is said here."""

import contextlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import loguru
import loguru._logger

from arctic_training.errors.redaction import redact

__all__ = ["close_log", "logger", "start_console_log", "start_file_log"]

_LINE = "{time:HH:mm:ss} {level: <7} {extra[rank]}{message}"
_FILED = "{time} {level: <7} {extra[rank]}{message}"
_ORDER = ["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"]

Ranks = Collection[int] | Literal["*"]

_held: list[str] = []
"""What was said before there was a file for it."""
_sinks: dict[str, int] = {}
"""Where it is printed, and where it is kept, by those words."""


def _hide(record: Any) -> None:
    record["message"] = redact(record["message"])


def _heard_by_the_program() -> bool:
    """Whether somebody has added a sink to loguru's own logger; the one that it begins with is nobody's."""
    return bool(loguru.logger._core.handlers.keys() - {0})  # type: ignore[attr-defined]


def _printed_here(record: Any) -> bool:
    """Whether the sink that loguru begins with, when the program has left it beside its own, does not print it."""
    return not (_heard_by_the_program() and 0 in loguru.logger._core.handlers)  # type: ignore[attr-defined]


def _tell_the_program(message: Any) -> None:
    record = message.record

    def same(theirs: Any) -> None:
        theirs.update({**record, "extra": {**theirs["extra"], **record["extra"]}})

    if _heard_by_the_program():
        loguru.logger.patch(same).log(record["level"].name, "")


_library: Any = loguru._logger  # as the library makes its own
logger: "loguru.Logger" = _library.Logger(
    core=_library.Core(),
    exception=None,
    depth=0,
    record=False,
    lazy=False,
    colors=False,
    raw=False,
    capture=True,
    patchers=[_hide],
    extra={},
)
logger.configure(extra={"rank": ""})
logger.add(_tell_the_program, level=0, format="{message}")
# while there is no run, what matters is printed all the same
_sinks["printed"] = logger.add(
    lambda line: print(line, end="", file=sys.stderr), level="SUCCESS", format=_LINE, filter=_printed_here
)


def start_console_log(*, level: str, rank: int, world: int, ranks: Ranks) -> None:
    """From now on this process prints to standard error, as its rank may, and keeps what is for the file."""
    close_log()
    _remove("printed")
    _held.clear()
    logger.configure(extra={"rank": f"[rank {rank}] " if world > 1 else ""})
    if ranks == "*" or rank in ranks:
        _sinks["printed"] = logger.add(sys.stderr, level=level, format=_LINE, filter=_printed_here)
    _sinks["kept"] = logger.add(_held.append, level=min(level, "INFO", key=_ORDER.index), format=_FILED)


def start_file_log(folder: Path, *, level: str, rank: int, ranks: Ranks) -> None:
    """Append to ``folder/rank_<n>.log`` too, as the rank may, beginning with what `start_console_log` kept."""
    close_log()
    if ranks == "*" or rank in ranks:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{rank}.log"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_held)
        _sinks["kept"] = logger.add(path, level=min(level, "INFO", key=_ORDER.index), format=_FILED)
    _held.clear()


def close_log() -> None:
    """Keep nothing any more, and close the file that there is; what is printed stays as it is."""
    _remove("kept")


def _remove(what: str) -> None:
    if what in _sinks:
        with contextlib.suppress(ValueError):  # somebody else has removed it
            logger.remove(_sinks.pop(what))
