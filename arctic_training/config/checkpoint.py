"""The section of a checkpoint engine, as far as every one has one."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from arctic_training.config.base import ComponentConfig
from arctic_training.config.numbers import HumanInt
from arctic_training.config.paths import unwritable
from arctic_training.config.problems import Problem


class CheckpointConfig(ComponentConfig):
    output_dir: Path | None = None
    """Where the checkpoints go; ``checkpoints/<type>`` in the run folder when left out."""
    enabled: bool = True
    """False: as if the section were not there."""
    auto_resume: bool = False
    """Go on from the newest checkpoint in ``output_dir``, when there is one."""
    save_every_n_steps: HumanInt = Field(default=0, ge=0)
    """Optimizer updates between saves; 0: never for this reason."""
    save_every_n_epochs: HumanInt = Field(default=0, ge=0)
    """Epochs between saves; 0: never for this reason."""
    save_end_of_training: bool = False
    """Save when the run has come to its end, or is stopped in good order."""
    keep_last: HumanInt = Field(default=0, ge=0)
    """How many checkpoints to keep; 0: all of them."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What a run does when the disk refuses a checkpoint before its end: go on training, or stop."""

    def absent(self) -> list[Problem]:
        told = unwritable(self.output_dir) if self.enabled else ""
        return [Problem(("output_dir",), told)] if told else []
