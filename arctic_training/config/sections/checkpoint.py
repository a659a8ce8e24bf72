"""The section of a checkpoint engine, as far as every one has one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from arctic_training.config.checks.paths import unwritable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanInt
from arctic_training.registry import lookup


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
    """Save when the run has come to its end, or is stopped in good order. Sections from which a run can go on save one
    that is stopped before its end whatever this says."""
    keep_last: HumanInt = Field(default=0, ge=0)
    """How many checkpoints to keep, the newest; 0: all of them."""
    keep_every: HumanInt = Field(default=0, ge=0)
    """Beside those, keep every checkpoint whose update is a multiple of this; 0: none."""
    keep_best: HumanInt = Field(default=0, ge=0)
    """Beside those, keep so many of the best by ``best_metric``; 0: none. The file ``best`` names the first of them."""
    best_metric: str | None = Field(default=None, min_length=1)
    """A metric of the evaluation, such as ``loss/eval``; the loss on the first evaluation set when left out. A
    checkpoint that was saved when nothing was evaluated has no value of it, and is never the best."""
    best_mode: Literal["min", "max"] = "min"
    """Whether the smallest value is the best, or the largest."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What a run does when the disk refuses a checkpoint before its end: go on training, or stop."""

    @model_validator(mode="after")
    def _keeps(self) -> "CheckpointConfig":
        for name in ("keep_every", "keep_best"):
            if getattr(self, name) and not self.keep_last:
                raise ValueError(f"{name}: without keep_last all checkpoints are kept; give keep_last too")
        if self.best_metric is not None and not self.keep_best:
            raise ValueError("best_metric: it says which checkpoints keep_best keeps, and that is 0; give keep_best")
        return self

    def folder(self, run_dir: Path) -> Path:
        """Where the checkpoints of a run go."""
        return self.output_dir or run_dir / "checkpoints" / self.type

    def missing_paths(self) -> list[Problem]:
        told = unwritable(self.output_dir) if self.enabled else ""
        return [Problem(("output_dir",), told)] if told else []


def require_resumable(sections: Sequence[CheckpointConfig]) -> None:
    """Raises ValueError for a section that says ``auto_resume`` and is of a type from which no run can go on."""
    for section in sections:
        engine: Any = lookup("checkpoint_engine", section.type)
        if section.auto_resume and not engine.resumable:
            raise ValueError(f"auto_resume: no run can go on from type {section.type}; add one of type deepspeed")


def require_separate_folders(sections: Sequence[CheckpointConfig]) -> None:
    """Raises ValueError when sections of one run would be in each other's way."""
    if sum(section.auto_resume for section in sections) > 1:
        raise ValueError("several have auto_resume: true; the run can go on from one of them only")
    places = [str(section.output_dir.absolute() if section.output_dir else section.type) for section in sections]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise ValueError(f"two sections save in one folder, {twice}; give one of them another output_dir")
