"""Every error that this package raises on purpose."""

from typing import ClassVar


class ArcticError(Exception):
    """Base of all errors of this package. The command prints its text, without a traceback, and exits with
    ``exit_code``."""

    exit_code: ClassVar[int] = 1


class InputError(ArcticError):
    """The input of a user cannot be used. Nothing was started and nothing written."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be run, with one line for each problem, all of them at once."""

    def __init__(self, problems: list[str] | str) -> None:
        lines = [problems] if isinstance(problems, str) else problems
        # the text of a recipe must not control the terminal
        self.problems = [
            "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in line)
            for line in lines
        ]
        super().__init__("\n".join(self.problems))


class RegistryError(InputError, ValueError):
    """A name is unknown, or taken by another class. A ValueError, so that the validator of a section may raise it."""


class DataError(InputError):
    """A data source, a row or a cache cannot be used."""


class ModelError(InputError):
    """A model or tokenizer cannot be read, or does not fit the run."""


class MissingDependencyError(InputError):
    """A library that the recipe needs is not installed."""


class CheckpointError(ArcticError):
    """A checkpoint cannot be written or read."""


class ResumeError(CheckpointError):
    """A checkpoint does not fit the run that reads it."""

    exit_code = 2


class TrainingError(ArcticError):
    """The run cannot continue."""


class NonFiniteError(TrainingError):
    """A loss, gradient or weight is not finite. Raised on every rank alike."""

    exit_code = 3


class ScoringError(TrainingError):
    """A completion cannot be scored. Raised on every rank alike, between two steps: the run saves first."""


class MemoryShortError(TrainingError):
    """The device or the machine is out of memory."""


class WorkerError(TrainingError):
    """A process that reads data for the training loop has died."""


class SampleError(TrainingError):
    """A sample cannot be read, or cannot be collated into a batch."""


class HangError(TrainingError):
    """A process has made no progress for too long."""

    exit_code = 70
