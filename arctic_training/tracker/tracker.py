"""Trackers: where the metrics of a run are logged."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arctic_training.config.sections.base import C, ComponentConfig
from arctic_training.config.sections.component import Configured
from arctic_training.errors.types import ArcticError, InputError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.tracker.samples import Samples


class Tracker(Configured[C], ABC, kind="tracker"):
    """Exists on the main rank only. A tracker that fails after `start` is dropped; the run continues."""

    def check(self) -> None:
        """Called before anything else of the run is built. Raises `InputError` when the tracker cannot work."""

    def check_offline(self) -> None:
        """Called by the command ``validate``. Raises `InputError` for what `check` finds without a network."""
        self.check()

    def files(self, run_dir: Path) -> list[Path]:
        """Returns the files that it writes, which no other tracker of the run may write."""
        return []

    @abstractmethod
    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        """Starts logging. ``recipe`` is the resolved recipe without secrets; ``step`` is above 0 in a resumed run.

        An error raised here refuses the run, of which nothing is written yet; trackers already started are finished.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs ``values`` at ``step``, the number of optimizer steps taken."""

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        """Logs what the models generate at ``step``; by default nothing, since the run folder has it too."""

    def finish(self, failed: bool) -> None:
        """Called at the end of the run; ``failed`` when it ends by an error."""


@contextmanager
def refuse_run_on_error(tracker: Tracker[ComponentConfig]) -> Iterator[None]:
    """Raises `InputError` for any error that ``tracker`` raises inside."""
    try:
        yield
    except ArcticError:
        raise
    except Exception as error:
        trace = user_traceback(error)
        cause = f":\n{trace}" if trace else f" ({type(error).__name__}: {error})"
        raise InputError(f"trackers: {tracker.name} cannot log the run{cause}") from error
