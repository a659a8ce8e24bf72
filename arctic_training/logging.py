"""The logger of this package, which puts the rank before each line on several ranks; progress bars of libraries.

It is separate from loguru's own logger, which belongs to the program that uses this package: that one keeps its sinks,
and gets the messages of this one too.
"""

import contextlib
import logging
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import loguru
import loguru._logger

from arctic_training.errors.redaction import redact

__all__ = ["close_log", "logger", "start_console_log", "start_file_log", "without_messages"]

_LINE = "{time:HH:mm:ss} {level: <7} {extra[rank]}{message}"
_FILE_LINE = "{time} {level: <7} {extra[rank]}{message}"
_LEVELS = ["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"]

Ranks = Collection[int] | Literal["*"]

_buffer: list[str] = []
"""Lines that were logged before the log file was open."""
_sinks: dict[str, int] = {}
"""The ids of this package's sinks: ``console`` and ``file``."""


def _program_has_sinks() -> bool:
    """Returns whether the program added a sink to loguru's own logger, which has the sink 0 by default."""
    return bool(loguru.logger._core.handlers.keys() - {0})  # type: ignore[attr-defined]


def _console_filter(record: "loguru.Record") -> bool:
    """Returns whether to print a record: not where loguru's default sink, beside the program's own, prints it."""
    return not (_program_has_sinks() and 0 in loguru.logger._core.handlers)  # type: ignore[attr-defined]


def _forward_to_program(message: "loguru.Message") -> None:
    record = message.record

    def copy_record(target: "loguru.Record") -> None:
        target.update({**record, "extra": {**target["extra"], **record["extra"]}})

    if _program_has_sinks():
        loguru.logger.patch(copy_record).log(record["level"].name, "")


_library: Any = loguru._logger  # built as the library builds its own
logger: "loguru.Logger" = _library.Logger(
    core=_library.Core(),
    exception=None,
    depth=0,
    record=False,
    lazy=False,
    colors=False,
    raw=False,
    capture=True,
    patchers=[lambda record: record.update(message=redact(record["message"]))],
    extra={},
)
logger.configure(extra={"rank": ""})
logger.add(_forward_to_program, level=0, format="{message}")


def _print(line: str) -> None:
    print(line, end="", file=sys.stderr, flush=True)  # while a progress bar is shown, the stream is another


def _print_from(level: str) -> None:
    """Prints lines of ``level`` and above, in place of what was printed until now."""
    _remove("console")
    _sinks["console"] = logger.add(_print, level=level, format=_LINE, filter=_console_filter)


def start_console_log(*, level: str, rank: int, world: int, ranks: Ranks) -> None:
    """Starts to print to standard error if ``rank`` is one of ``ranks``, and buffers lines for the log file."""
    _remove("file")
    _buffer.clear()
    logger.configure(extra={"rank": f"[rank {rank}] " if world > 1 else ""})
    if ranks == "*" or rank in ranks:
        _print_from(level)
    else:
        _remove("console")
    _sinks["file"] = logger.add(_buffer.append, level=min(level, "INFO", key=_LEVELS.index), format=_FILE_LINE)


def start_file_log(folder: Path, *, level: str, rank: int, ranks: Ranks) -> None:
    """Starts to append to ``folder/rank_<n>.log`` if ``rank`` is one of ``ranks``, first the buffered lines."""
    _remove("file")
    if ranks == "*" or rank in ranks:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{rank}.log"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_buffer)
        escaped = str(path).replace("{", "{{").replace("}", "}}")  # loguru formats it with the time
        _sinks["file"] = logger.add(escaped, level=min(level, "INFO", key=_LEVELS.index), format=_FILE_LINE)
    _buffer.clear()


def close_log() -> None:
    """Closes the log file. Important messages are printed from now on, as while there is no run."""
    _remove("file")
    _buffer.clear()
    _print_from("SUCCESS")


def _remove(sink: str) -> None:
    if sink in _sinks:
        with contextlib.suppress(ValueError):  # the program has removed it
            logger.remove(_sinks.pop(sink))


close_log()


@contextlib.contextmanager
def without_messages(library: str) -> Iterator[None]:
    """Keeps the logger of ``library``, and those below it, from messages that are no errors inside."""
    log = logging.getLogger(library)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
