"""Schedule of saves: when a checkpoint is due, and up to which step the run is saved already."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.compatibility import CompatibilityGuard
from arctic_training.component import FormerAttributes, TrainerView
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import CheckpointError
from arctic_training.state import Progress

C = TypeVar("C", bound=CheckpointConfig, covariant=True)
T = TypeVar("T")


class SaveSchedule(FormerAttributes, Generic[C]):
    """The part of `Checkpointer` that decides when to save. All ranks call its methods together."""

    config: C
    trainer: TrainerView
    output_dir: Path
    resumable: ClassVar[bool] = False
    """Whether a run can resume from the checkpoints; true by default of a class that defines `read`."""
    guard: CompatibilityGuard | None = None
    """Compares the run of a checkpoint with this one; set by assembly."""
    stopped: str = ""
    """Why the run was stopped for good at the step that is saved, as its checkpoint says."""
    _last_saved: int | None = None
    """The newest step in ``output_dir`` that this run saved or resumed from."""
    _covered: int | None = None
    """The step that need not be saved again: it was saved here, or the run resumed from it."""
    _is_last_save: bool = False
    _is_planned: bool = False
    """The loop saves, which will also complete a save that is written beside training."""

    def should_save(self, progress: Progress, *, end: bool = False, early: bool = False) -> bool:
        """Returns whether to save: after a step, an epoch (``sample_index`` is 0), or at the ``end``; once per step.

        An ``early`` end was requested, or comes before the recipe's plan is reached: what the run can resume from is
        saved then, whatever the recipe says.
        """
        self._is_last_save, self._is_planned = end, not end
        config, step = self.config, progress.step
        if not config.enabled or step == self._covered:
            return False
        steps, epochs = config.save_every_n_steps, config.save_every_n_epochs
        return bool(
            (steps and step and step % steps == 0)
            or (epochs and progress.epoch and progress.sample_index == 0 and progress.epoch % epochs == 0)
            or (end and (config.save_end_of_training or (early and self.resumable)))
        )

    def mark_resumed(self, manifest: Mapping[str, Any]) -> None:
        """Records that the run resumed from the checkpoint of this ``manifest``, maybe of another checkpointer.

        What is saved here of the same run and step is not saved again.
        """
        folder = disk.step_folder(self.output_dir, int(manifest["step"]))
        if self._covered is None and verify_together(folder, hashes=False) is None:
            own = collectives.broadcast_object(disk.read_manifest(folder))
            if own.get("run") == manifest.get("run"):
                self._last_saved = self._covered = own["step"]

    def mark_rewound(self) -> None:
        """Records that the run went back: later steps than its own were of another course, and are saved again."""
        if self._covered is not None and self._covered > self.trainer.progress.step:
            self._covered = None

    def mark_stopped(self, reason: str) -> None:
        """Records in the checkpoint of this step, saved already or not yet, that the run is stopped for good.

        Raises nothing: after a `CheckpointError` the checkpoint is saved anew.
        """
        step = self.trainer.progress.step
        if reason == self.stopped:
            return
        self.stopped = reason
        if self._covered != step:
            return
        folder = disk.step_folder(self.output_dir, step)
        try:
            if self._last_saved != step:
                raise CheckpointError(f"{folder} does not exist yet")
            self._on_all_ranks(
                "update", lambda: disk.update_manifest(folder, {"stopped": reason}) if self._is_main else None
            )
        except CheckpointError:
            self._covered = None  # then it is saved anew

    @property
    def _is_main(self) -> bool:
        return process_group.is_main()

    def _on_all_ranks(self, verb: str, act: Callable[[], T]) -> list[T]:
        """Returns what ``act`` returns on each rank. Raises `CheckpointError` on all when the disk refuses on one."""
        values: list[T] = []
        problem = ""
        try:
            values.append(act())
        except (OSError, CheckpointError) as error:
            problem = f"rank {process_group.rank()}: {error}{disk.free_space_hint(self.output_dir)}"
        if problems := [one for one in collectives.all_gather_object(problem) if one]:
            raise CheckpointError(f"cannot {verb} a checkpoint in {self.output_dir}: {'; '.join(problems)}")
        return collectives.all_gather_object(values[0])


def verify_together(folder: Path, *, hashes: bool) -> str | None:
    """Returns what is wrong with a checkpoint, or None, on all ranks; each hashes its part of the files."""
    part, parts = process_group.rank(), process_group.world_size()
    results = collectives.all_gather_object(disk.verify(folder, hashes=hashes, part=part, parts=parts))
    return next(filter(None, results), None)
