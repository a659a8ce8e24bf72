"""The ``logger`` section."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, WithJsonSchema

from arctic_training.config.checks.files import unwritable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.base import BaseConfig

_INTEGER = {"type": "integer"}
Ranks = Annotated[
    list[int] | Literal["*"],
    BeforeValidator(lambda value: [value] if isinstance(value, int) else value),
    WithJsonSchema({"anyOf": [_INTEGER, {"type": "array", "items": _INTEGER}, {"const": "*"}]}),
]

Level = Literal["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"]
_LEVELS = [*get_args(Level), *map(str.lower, get_args(Level))]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class LoggerConfig(BaseConfig):
    """Files, ranks and levels of the log."""

    output_dir: Path | None = None
    """Folder of the log files, one for each rank (default: ``logs`` in the run folder)."""
    level: Annotated[Level, BeforeValidator(_upper), WithJsonSchema({"enum": _LEVELS})] = "SUCCESS"
    """Lowest level that is printed: SUCCESS has what a run resumes from and waits for, INFO every phase. The files
    begin at INFO, or lower when this is lower."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """How the progress is shown: ``bar``, as on a terminal or in a notebook; ``lines``, one for each record of the
    loss, as in a file; ``auto``, as fits; ``none``, as lines, and nothing of what takes long."""
    print_output_ranks: Ranks = [0]
    """Ranks that print their log; ``"*"`` for all."""
    file_output_ranks: Ranks = "*"
    """Ranks that write a log file; ``"*"`` for all."""

    def missing_paths(self) -> list[Problem]:
        return problems_of_keys({"output_dir": unwritable(self.output_dir)})
