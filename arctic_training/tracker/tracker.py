"""Where the numbers of a run are told."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.types import ArcticError, InputError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.registry import Registered


class Tracker(Registered, ABC, kind="tracker"):
    """Lives in the main process only. One that fails after `start` is left out of the run, which goes on."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config: Any = config

    def check(self) -> None:
        """Called before anything else of the run is made. Raises `InputError` when the run could not be told."""

    def files(self, run_dir: Path) -> list[Path]:
        """Returns the files that it writes, which no other tracker of the run may write."""
        return []

    @abstractmethod
    def start(self, recipe: Mapping[str, Any], run_dir: Path, step: int) -> None:
        """``recipe`` is the resolved one, without secrets; ``step`` is above 0 when the run goes on from a checkpoint.

        An error raised here refuses the run, of which nothing is written yet: `finish` is then called of those trackers
        that have started.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """``step`` is the number of optimizer updates taken."""

    def finish(self, failed: bool) -> None:
        pass


@contextmanager
def refuse_run_on_error(tracker: Tracker) -> Iterator[None]:
    """Raises `InputError` for whatever ``tracker`` raises inside, before the run."""
    try:
        yield
    except ArcticError:
        raise
    except Exception as error:
        told = user_traceback(error)
        cause = f":\n{told}" if told else f" ({type(error).__name__}: {error})"
        raise InputError(f"trackers: {tracker.name} cannot be told of the run{cause}") from error
