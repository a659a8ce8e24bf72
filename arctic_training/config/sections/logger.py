"""The section of the log."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from arctic_training.config.checks.paths import unwritable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.base import BaseConfig

Ranks = Annotated[list[int] | Literal["*"], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class LoggerConfig(BaseConfig):
    output_dir: Path | None = None
    """Folder of the log files, one for each process; ``logs`` in the run folder when left out."""
    level: Annotated[
        Literal["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)
    ] = "SUCCESS"
    """Least severe level that is printed: SUCCESS tells where a run goes on from and what it waits for, INFO every step
    on the way. The files begin at INFO, or lower when this is lower."""
    print_output_ranks: Ranks = [0]
    """Ranks that print their log; ``"*"`` for all."""
    file_output_ranks: Ranks = "*"
    """Ranks that write a log file; ``"*"`` for all."""

    def missing_paths(self) -> list[Problem]:
        told = unwritable(self.output_dir)
        return [Problem(("output_dir",), told)] if told else []
