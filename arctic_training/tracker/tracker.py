"""Where the numbers of a run are told."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from arctic_training.config.base import ComponentConfig
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

        An error raised here refuses the run.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """``step`` is the number of optimizer updates taken."""

    def finish(self, failed: bool) -> None:
        pass
