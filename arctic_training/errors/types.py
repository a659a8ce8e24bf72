"""Every error this package raises on purpose."""

from typing import ClassVar


class ArcticError(Exception):
    """Base of all of them. The command prints its text, without a traceback, and ends with ``exit_code``."""

    exit_code: ClassVar[int] = 1


class InputError(ArcticError):
    """What a person gave cannot be used: nothing was started and nothing written."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be run. One line for each problem, all of them at once."""

    def __init__(self, problems: list[str] | str) -> None:
        told = [problems] if isinstance(problems, str) else problems
        # what a recipe holds must not do anything to the terminal
        self.problems = [
            "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in line) for line in told
        ]
        super().__init__("\n".join(self.problems))


class RegistryError(InputError, ValueError):
    """A name is unknown, or taken by another class. A ValueError, so that a section's validator may raise it."""


class DataError(InputError):
    """A data source, a row or a cache that cannot be used."""


class ModelError(InputError):
    """A model or tokenizer that cannot be read, or does not fit the run."""


class MissingDependencyError(InputError):
    """A library that the recipe needs is not installed."""


class CheckpointError(ArcticError):
    """A checkpoint cannot be written or read."""


class ResumeError(CheckpointError):
    """A checkpoint does not fit the run that reads it."""

    exit_code = 2


class TrainingError(ArcticError):
    """The run cannot go on."""


class NonFiniteError(TrainingError):
    """A loss, a gradient or a weight is not a number, or infinite. Raised alike on every rank."""

    exit_code = 3


class ScoringError(TrainingError):
    """What an answer is worth cannot be told. Raised alike on every rank, between two updates: the run saves first."""


class MemoryShortError(TrainingError):
    """There was not enough memory on the device or the machine."""


class WorkerError(TrainingError):
    """A process that reads data for the loop has died."""


class SampleError(TrainingError):
    """A sample cannot be read, or a batch not be made of it."""


class HangError(TrainingError):
    """A process has given no sign of life for too long."""

    exit_code = 70
