"""The section of a checkpoint engine: the keys that all of them have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from arctic_training.config.checks.files import unwritable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.registry import lookup


class CheckpointConfig(ComponentConfig):
    """Keys that say when to save checkpoints, where, and which to keep."""

    synonyms = {"async": "asynchronous"}

    output_dir: Path | None = None
    """Folder of the checkpoints (default: ``checkpoints/<type>`` in the run folder)."""
    enabled: bool = True
    """Whether the section has an effect."""
    auto_resume: bool = False
    """Resume from the newest checkpoint in ``output_dir``, when there is one."""
    save_every_n_steps: HumanInt = Field(default=0, ge=0)
    """Steps between saves; 0: no saves by steps."""
    save_every_n_epochs: HumanInt = Field(default=0, ge=0)
    """Epochs between saves; 0: no saves by epochs."""
    save_end_of_training: bool = False
    """Save at the end of the run, and when it is stopped in order. A type from which runs resume saves one that is
    stopped before its end in any case."""
    keep_last: HumanInt = Field(default=0, ge=0)
    """Newest checkpoints to keep; 0: all."""
    keep_every: HumanInt = Field(default=0, ge=0)
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    keep_best: HumanInt = Field(default=0, ge=0)
    """Also keep this many of the best by ``best_metric``; 0: none. The file ``best`` names the first of them."""
    best_metric: str | None = Field(default=None, min_length=1)
    """A metric of the evaluation, such as ``loss/eval`` (default: the loss on the first evaluation set). A checkpoint
    without a value of it, saved when nothing was evaluated, is never the best."""
    best_mode: Literal["min", "max"] = "min"
    """Whether the smallest or the largest value is the best."""
    asynchronous: bool = False
    """Save beside training: what is saved is copied to host memory, and written by a thread while training goes on. The
    last save of a run is waited for. Also ``async``."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint before the end of the run cannot be written: continue training, or stop."""

    @model_validator(mode="after")
    def _check_keep_keys(self) -> "CheckpointConfig":
        for name in ("keep_every", "keep_best"):
            if getattr(self, name) and not self.keep_last:
                raise ValueError(f"{name}: without keep_last all checkpoints are kept; give keep_last too")
        if self.best_metric is not None and not self.keep_best:
            raise ValueError("best_metric: without keep_best it has no effect; give keep_best")
        return self

    def folder(self, run_dir: Path) -> Path:
        """Returns the folder of the checkpoints of a run."""
        return self.output_dir or run_dir / "checkpoints" / self.type

    def folder_in(self, run_dir: Path) -> Path | None:
        """Returns ``output_dir`` as a folder of the same name in a run folder; None where the section names none."""
        return run_dir / "checkpoints" / self.output_dir.name if self.output_dir is not None else None

    def missing_paths(self) -> list[Problem]:
        return problems_of_keys({"output_dir": unwritable(self.output_dir)} if self.enabled else {})


def require_consistent(sections: Sequence[CheckpointConfig]) -> None:
    """Raises ValueError when two sections of one run save in the same folder, or both resume, and for a section with
    ``auto_resume`` or ``asynchronous`` whose type does not do so, or that says what to keep and saves nothing."""
    if sum(section.auto_resume for section in sections) > 1:
        raise ValueError("several have auto_resume: true; a run resumes from one of them only")
    folders = [str(section.output_dir.absolute() if section.output_dir else section.type) for section in sections]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise ValueError(f"two sections save in one folder, {twice}; give one of them another output_dir")
    for section in sections:
        engine = lookup("checkpoint_engine", section.type)
        if section.auto_resume and not getattr(engine, "resumable", False):
            raise ValueError(f"auto_resume: no run can resume from type {section.type}; add one of type deepspeed")
        is_due = section.save_every_n_steps or section.save_every_n_epochs or section.save_end_of_training
        if section.keep_last and not is_due:
            raise ValueError("keep_last: no checkpoint is saved; give save_every_n_steps or save_every_n_epochs")
        if section.asynchronous and not getattr(engine, "saves_beside", False):
            raise ValueError(
                f"async: type {section.type} writes while training waits: it defines no `stage`; remove it"
            )
