"""Writes checkpoints atomically, while training waits or beside it, and removes those that need not be kept."""

import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from arctic_training.callback.hooks import hook
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint import retention
from arctic_training.checkpoint.background import BackgroundSave, Staged
from arctic_training.checkpoint.schedule import C, SaveSchedule
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import CheckpointError
from arctic_training.logging import logger
from arctic_training.metrics import reported_sets
from arctic_training.state import RunState


class Saving(SaveSchedule[C]):
    """The part of `Checkpointer` that saves. All ranks call its methods together."""

    name: ClassVar[str]
    saves_beside: ClassVar[bool] = False
    """Whether ``async`` is possible: a class that defines `stage` with, or after, `write`."""
    _metrics: tuple[int, Mapping[str, float]] = (-1, {})
    """The step of the latest evaluation, and its metrics."""
    _pending: BackgroundSave | None = None
    """The save that is under way beside training."""
    _warned_no_metric = False
    _warned_other_metrics = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        nearest = next(vars(one) for one in cls.__mro__ if {"write", "stage"} & vars(one).keys())
        # what a class writes in another way than its base would not be what is staged
        cls.saves_beside = cls.stage is not Saving.stage and "stage" in nearest
        super().__init_subclass__(**kwargs)

    @abstractmethod
    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any] | None:
        """Writes the checkpoint into ``folder``, each rank its own files; returns entries for the manifest.

        The entries of rank 0 count. What needs the other ranks must be done whether or not this one could write, so
        OSError may be raised only after it.
        """

    def stage(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Staged:
        """Copies what `write` would write, and returns how a thread of this rank writes the copy beside training.

        As in `write`, the other ranks act together. A class that defines ``write`` defines it too, or runs save with
        ``async: false`` only.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be saved beside training")

    @property
    def best_metric(self) -> str:
        """The name of the metric by which the best checkpoints are chosen."""
        return self.config.best_metric or f"loss/{next(iter(reported_sets(self.trainer.eval_loaders)), 'eval')}"

    def record_metrics(self, values: Mapping[str, float]) -> None:
        """Records what the evaluation of this step measured, by name, with its checkpoint, saved already or not yet."""
        step = self.trainer.progress.step
        self._metrics = (step, {name: float(value) for name, value in values.items()})
        if self.config.keep_best and self.best_metric not in values and not self._warned_other_metrics:
            self._warned_other_metrics = True
            logger.warning(
                f"the evaluation after step {step} measured {', '.join(values) or 'nothing'}, but not "
                f"{self.best_metric}, by which checkpoint.keep_best chooses"
            )
        if self._pending is not None and self._pending.step == step:
            self.finish()
        folder = disk.step_folder(self.output_dir, step)
        if self._last_saved == step and self.config.enabled:
            self._apply_retention(
                step, lambda: disk.update_manifest(folder, {"values": self._metrics[1]}) if folder.is_dir() else None
            )

    def saved_values(self, step: int) -> dict[str, float] | None:
        """Returns the metrics in the checkpoint of ``step``; None when this run has not saved it. All ranks call it."""
        if self._last_saved != step:
            return None
        values: dict[str, float] = disk.read_manifest(disk.step_folder(self.output_dir, step)).get("values", {})
        return collectives.broadcast_object(values)

    @hook("save")
    def save(self, engines: Mapping[str, Engine], state: RunState) -> Path | None:
        """Writes the checkpoint of this step and returns its folder. A save that is under way is waited for.

        With ``async`` and before the end of the run, a copy of it is written beside training: the folder comes to be
        later.

        When the disk refuses (full, read-only, gone), the space of the attempt is freed, earlier checkpoints stay, and
        None is returned. Raises `CheckpointError` instead at the end of the run, or with ``on_save_error: stop``.
        """
        self.finish()
        step, beside = self.trainer.progress.step, self.config.asynchronous and self._is_planned
        temp = disk.temp_dir(self.output_dir, step)
        self._is_planned = False
        try:
            self._on_all_ranks("create", lambda: disk.create_temp_dir(self.output_dir, step) if self._is_main else None)
            self._on_all_ranks("reach", lambda: _require_folder(temp))
            if beside:
                staged = list[Staged]()
                self._on_all_ranks("copy", lambda: staged.append(self.stage(temp, engines, state)))
                self._pending = BackgroundSave(step, temp, staged[0], self._manifest(staged[0].entries))
            else:
                entries = self._on_all_ranks("write", lambda: self.write(temp, engines, state))[0] or {}
                names = disk.list_files(temp)
                own = names[process_group.rank() :: process_group.world_size()]
                self._commit(step, temp, lambda: disk.fsync_and_hash(temp, own), self._manifest(entries))
        except CheckpointError as error:
            self._give_up(error, temp)
            return None
        self._covered = step
        if not beside:
            self._after_save(step)
        return disk.step_folder(self.output_dir, step)

    @property
    def is_under_way(self) -> bool:
        """Returns whether a checkpoint is being written beside training."""
        return self._pending is not None

    def poll(self) -> None:
        """Completes a save that is under way when all ranks have written their parts; called after every step."""
        if self._pending is not None and all(collectives.all_gather_object(self._pending.is_done)):
            self.finish()

    def finish(self) -> None:
        """Waits for a save that is under way, and completes it. All ranks call it together. Raises as `save` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._commit(pending.step, pending.folder, pending.result, pending.entries)
        except CheckpointError as error:
            if self._covered == pending.step:
                self._covered = None  # the end of the run saves it again
            self._give_up(error, pending.folder)
        else:
            self._after_save(pending.step)

    def abandon(self) -> None:
        """Ends a save that is under way in a run that ends by an error: a run of one process completes it; of several,
        which no longer act together, each ends its thread, and the next start removes what they wrote."""
        if self._pending is None:
            return
        self._pending.wait()
        if process_group.world_size() == 1:
            self.finish()

    def _manifest(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the manifest of a checkpoint of this step, without its files."""
        about: dict[str, Any] = {"run": self.guard.run_description} if self.guard else {}
        about |= {"stopped": self.stopped} if self.stopped else {}
        values = self._metrics[1] if self._metrics[0] == self.trainer.progress.step else {}
        return {"type": self.name, "world": process_group.world_size(), **about, "values": values, **entries}

    def _commit(self, step: int, temp: Path, hashes: Callable[[], disk.FileHashes], entries: Mapping[str, Any]) -> None:
        """Completes what was written to ``temp`` on all ranks, each of which ``hashes`` its files."""
        parts = self._on_all_ranks("flush", hashes)
        files = {name: one for part in parts for name, one in part.items()}
        self._on_all_ranks("commit", lambda: disk.commit(temp, step, files, entries) if self._is_main else None)

    def _give_up(self, error: CheckpointError, temp: Path) -> None:
        """Frees the space of a failed attempt, and raises ``error`` where it ends the run."""
        if self._is_main:
            shutil.rmtree(temp, ignore_errors=True)
        if self._is_last_save or self.config.on_save_error == "stop":
            raise error
        logger.error(f"{error}; the run continues, and earlier checkpoints are untouched")

    def _after_save(self, step: int) -> None:
        """Records the checkpoint of ``step``, which is complete, and removes others."""
        self._last_saved = step
        will_evaluate = self._is_last_save and self.trainer.config.evaluate_last  # at the end, which follows it
        has_no_metric = self._metrics[0] != step and not will_evaluate
        if self.config.keep_best and has_no_metric and not self._warned_no_metric:
            self._warned_no_metric = True
            logger.warning(
                f"the checkpoint of step {step} has no {self.best_metric}, so it cannot be the best: "
                "save at steps with an evaluation"
            )
        self._apply_retention(step)

    def _apply_retention(self, step: int, first: Callable[[], object] = lambda: None) -> None:
        """Calls ``first`` and removes checkpoints that need not be kept. What the disk refuses is tried again later."""

        def act() -> None:
            root, config, best = self.output_dir, self.config, list[int]()
            try:
                first()
                if config.keep_best:
                    best = retention.best(root, self.best_metric, config.best_mode, config.keep_best, max_step=step)
                    retention.name_best(root, best)
                retention.prune(root, config.keep_last, every=config.keep_every, protected=best, max_step=step)
            finally:
                disk.remove_discarded(root)

        try:
            self._on_all_ranks("prune", lambda: act() if self._is_main else None)
        except CheckpointError as error:
            logger.warning(f"{error}; what is saved is complete, and this is tried again at the next save")


def _require_folder(temp: Path) -> None:
    if not temp.is_dir():
        raise OSError(f"{temp} does not exist here: is the disk shared by all machines?")
