"""When a checkpoint is due, and what of the run as it stands is saved already."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.compatibility import CompatibilityGuard
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import CheckpointError
from arctic_training.state import Progress


class Standing:
    """Of `Checkpointer`. All processes call its methods together."""

    config: Any
    trainer: Any
    output_dir: Path
    resumable: ClassVar[bool] = False
    """Whether a run can go on from what this engine saves: true of a class that writes `read` and says nothing else."""
    guard: CompatibilityGuard | None = None
    """Knows of what run the checkpoints are, and from which this one may go on; assembly sets it."""
    stopped: str = ""
    """Why the run was stopped for good at the update that is saved, as its checkpoint says."""
    _saved: int | None = None
    """The newest update in ``output_dir`` that is of this run."""
    _settled: int | None = None
    """The update that is not to be saved again: it was, or the run went on from it."""
    _ending: bool = False

    def should_save(self, progress: Progress, *, end: bool = False, early: bool = False) -> bool:
        """Whether to save now: after an update, after an epoch (``row`` is 0), or at the ``end``; once per update.

        An ``early`` end comes before the recipe's plan is carried out, or was asked for: what the run can go on from is
        saved then, whatever the recipe says.
        """
        self._ending = end
        config, update = self.config, progress.step
        if not config.enabled or update == self._settled:
            return False
        every, epochs = config.save_every_n_steps, config.save_every_n_epochs
        return bool(
            (every and update and update % every == 0)
            or (epochs and progress.epoch and progress.sample_index == 0 and progress.epoch % epochs == 0)
            or (end and (config.save_end_of_training or (early and self.resumable)))
        )

    def mark_resumed(self, manifest: Mapping[str, Any]) -> None:
        """The run goes on from the checkpoint of this ``manifest``: what is here of the same run and update stays."""
        folder = disk.step_folder(self.output_dir, int(manifest["step"]))
        if self._settled is None and damage(folder, sums=False) is None:
            here = collectives.broadcast_object(disk.read_manifest(folder))
            if here.get("run") == manifest.get("run"):
                self._saved = self._settled = here["step"]

    def mark_rewound(self) -> None:
        """The run has left the course on which later updates than its own were saved: they are saved again."""
        if self._settled is not None and self._settled > self.trainer.progress.step:
            self._settled = None

    def mark_stopped(self, reason: str) -> None:
        """The run is stopped for good: its checkpoint says so, be it saved already or not yet."""
        step = self.trainer.progress.step
        if reason == self.stopped:
            return
        self.stopped = reason
        if self._settled != step:
            return
        folder = disk.step_folder(self.output_dir, step)
        try:
            if self._saved != step:
                raise CheckpointError(f"{folder} is not there yet")
            self._on_all_ranks(
                "amend", lambda: disk.update_manifest(folder, {"stopped": reason}) if self._main else None
            )
        except CheckpointError:
            self._settled = None  # then it is saved anew

    @property
    def _main(self) -> bool:
        return process_group.is_main()

    def _on_all_ranks(self, doing: str, act: Callable[[], Any]) -> list[Any]:
        """What ``act`` returns on each process. What goes wrong with the disk on one is a `CheckpointError` on all."""
        value, wrong = None, ""
        try:
            value = act()
        except (OSError, CheckpointError) as error:
            wrong = f"rank {process_group.rank()}: {error}{disk.free_space_hint(self.output_dir)}"
        if told := [one for one in collectives.all_gather_object(wrong) if one]:
            raise CheckpointError(f"cannot {doing} a checkpoint in {self.output_dir}: {'; '.join(told)}")
        return collectives.all_gather_object(value)


def damage(folder: Path, *, sums: bool) -> str | None:
    """What is wrong with a checkpoint, the processes sharing the work; the same answer on each."""
    part, parts = process_group.rank(), process_group.world_size()
    return next(
        filter(None, collectives.all_gather_object(disk.verify(folder, sums=sums, part=part, parts=parts))), None
    )
