"""Decides when to save and writes checkpoints atomically. Subclasses define the contents."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn

from arctic_training.callback.hooks import hook
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint import retention
from arctic_training.checkpoint.model_methods import adopt_model_methods
from arctic_training.checkpoint.schedule import C, SaveSchedule, verify_together
from arctic_training.component import Factory, TrainerView
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine
from arctic_training.engine.hyperparameters import current_hyperparameters, override_hyperparameters
from arctic_training.errors.types import CheckpointError, ResumeError
from arctic_training.logging import logger
from arctic_training.state import RunState


class Checkpointer(SaveSchedule[C], Factory[C, "Checkpointer[CheckpointConfig]"], kind="checkpoint_engine"):
    """Saves and loads the engines and the state of a run. A subclass defines the contents in `write` and `read`.

    All ranks call `save`, `load` and `latest` together.
    """

    config_type = CheckpointConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        adopt_model_methods(cls)
        if "resumable" not in vars(cls):
            cls.resumable = cls.read is not Checkpointer.read
        super().__init_subclass__(**kwargs)

    def __init__(self, trainer: TrainerView, config: C) -> None:
        super().__init__(trainer, config)
        self.output_dir = config.folder(trainer.run_dir)
        self._metrics: tuple[int, dict[str, float]] = (-1, {})
        """The step of the latest evaluation, and its metrics."""
        self._warned_no_metric = False
        self._warned_other_metrics = False

    def __call__(self) -> Self:
        try:
            if process_group.is_main() and (removed := disk.remove_incomplete(self.output_dir)):
                logger.warning(
                    f"{self.output_dir}: removed incomplete checkpoints of a killed save: {', '.join(removed)}"
                )
        except OSError as error:
            logger.warning(f"{self.output_dir}: cannot remove what a killed save left: {error}")
        process_group.barrier()
        return self

    def dry_run(self, models: Mapping[str, nn.Module]) -> None:
        """Checks that what `write` saves of these models, by role, can be saved and loaded; writes nothing.

        Called before the data are prepared, with models on the meta device where these suffice, and again with the
        trained ones before the first step. Raises `RecipeError` when it cannot.
        """

    def check_state(self, state: RunState) -> None:
        """Checks that `write` can save ``state``, once every part of the run is built. Raises `RecipeError` if not."""

    @abstractmethod
    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any] | None:
        """Writes the checkpoint into ``folder``, each rank its own files; returns entries for the manifest.

        The entries of rank 0 count. What needs the other ranks must be done whether or not this one could write, so
        OSError may be raised only after it.
        """

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        """Loads a verified checkpoint into engines and state. Raises `ResumeError` when it does not fit the run."""
        raise ResumeError(f"a checkpoint of type {self.name} is for use elsewhere; no run can resume from it")

    @property
    def latest(self) -> Path | None:
        """The newest complete checkpoint that this run saved or resumed from; None when it has none.

        Only the presence and size of the files are checked; their hashes are when it is loaded.
        """
        return None if self._last_saved is None else self._first_complete(self._candidates(), hashes=False)

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is any checkpoint, complete or not."""
        return bool(self._candidates())

    def warn_about_newer(self) -> None:
        """Warns of checkpoints of later steps than the run has reached as it starts: they are of another start."""
        if not self._is_main:
            return
        if ahead := [step for step in disk.list_steps(self.output_dir) if step > self.trainer.progress.step]:
            logger.warning(
                f"{self.output_dir} holds checkpoints of an earlier run that are ahead of this one, step_{ahead[0]} to "
                f"step_{ahead[-1]}: they are ignored, and replaced when this run saves the same steps"
            )

    @property
    def best_metric(self) -> str:
        """The name of the metric by which the best checkpoints are chosen."""
        return self.config.best_metric or f"loss/{next(iter(self.trainer.eval_loaders), 'eval')}"

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
        """Writes the checkpoint of this step and returns its folder.

        When the disk refuses (full, read-only, gone), the space of the attempt is freed, earlier checkpoints stay, and
        None is returned. Raises `CheckpointError` instead at the end of the run, or with ``on_save_error: stop``.
        """
        config, step = self.config, self.trainer.progress.step
        temp = self.output_dir / f".aside-step_{step}"
        try:
            self._on_all_ranks("create", lambda: disk.create_temp_dir(self.output_dir, step) if self._is_main else None)
            self._on_all_ranks("reach", lambda: _require_folder(temp))
            entries = self._on_all_ranks("write", lambda: self.write(temp, engines, state))[0] or {}
            names = disk.list_files(temp)
            own = names[process_group.rank() :: process_group.world_size()]
            hashed = self._on_all_ranks("flush", lambda: disk.fsync_and_hash(temp, own))
            about: dict[str, Any] = {"run": self.guard.run_description} if self.guard else {}
            values = self._metrics[1] if self._metrics[0] == step else {}
            about |= {"stopped": self.stopped} if self.stopped else {}
            entries = {"type": self.name, "world": process_group.world_size(), **about, "values": values, **entries}
            hashes = {name: one for part in hashed for name, one in part.items()}
            self._on_all_ranks("commit", lambda: disk.commit(temp, step, hashes, entries) if self._is_main else None)
        except CheckpointError as error:
            if self._is_main:
                disk.remove_temp_dir(temp)
            if self._is_last_save or config.on_save_error == "stop":
                raise
            logger.error(f"{error}; the run continues, and earlier checkpoints are untouched")
            return None
        self._last_saved = self._covered = step
        has_no_metric = self._metrics[0] != step and not self._will_evaluate
        if config.keep_best and has_no_metric and not self._warned_no_metric:
            self._warned_no_metric = True
            logger.warning(
                f"the checkpoint of step {step} has no {self.best_metric}, so it cannot be the best: "
                "save at steps with an evaluation"
            )
        self._apply_retention(step)
        return disk.step_folder(self.output_dir, step)

    @hook("load")
    def load(self, engines: Mapping[str, Engine], state: RunState, path: Path | None = None) -> Path:
        """Loads the checkpoint ``path``, or the newest complete one; returns its folder.

        Everything is verified before anything is loaded. Raises `ResumeError` for a folder that is damaged, is of
        another run or does not fit, and when there is none.
        """
        candidates = [] if path else self._candidates()
        folder = path or self._first_complete(candidates, hashes=True)
        if folder is None:
            why = f": {verify_together(candidates[0], hashes=True)}" if candidates else ""
            raise ResumeError(f"{self.output_dir} holds no complete checkpoint to resume from{why}")
        if path is not None and (problem := verify_together(path, hashes=True)):
            raise ResumeError(problem)
        try:
            manifest = disk.read_manifest(folder)
            if manifest.get("type") != self.name:
                raise ResumeError(f"{folder} is a checkpoint of type {manifest.get('type')!r}, not {self.name!r}")
            changes = self.guard.check_compatible(folder, manifest) if self.guard else []
            if any(change.named_by(["callbacks"]) for change in changes):  # some begin anew, others are dropped
                state = state.allow_missing("callback.")
            hyperparameters = [current_hyperparameters(engine) for engine in engines.values()]
            self.read(folder, manifest, engines, state)
        except ResumeError:
            raise
        except CheckpointError as error:
            raise ResumeError(str(error)) from error
        if changes:
            logger.success(f"Resuming with changed settings, as allow_changes permits: {'; '.join(map(str, changes))}")
            for engine, own in zip(engines.values(), hyperparameters, strict=True):
                override_hyperparameters(engine, own)
        self._covered = int(manifest["step"])
        if folder.parent.absolute() == self.output_dir.absolute():
            self._last_saved = self._covered
        stopped = str(manifest.get("stopped", ""))
        continues = bool(changes) or (self.guard is not None and self.guard.ignores_stop)
        self.stopped = "" if continues else stopped
        if stopped and continues:
            logger.success(f"Continuing past the stop at step {self._covered}: {stopped}")
        return folder

    @property
    def _will_evaluate(self) -> bool:
        """Whether the evaluation at the end of the run, which follows its last save, is still to come."""
        return self._is_last_save and self.trainer.config.evaluate_last

    def _candidates(self) -> list[Path]:
        """Returns what `load` tries, in order: what ``latest`` names, earlier ones, later ones.

        Later ones are of another run, in whose folder this run began anew.
        """
        named, steps = disk.latest_step(self.output_dir), disk.list_steps(self.output_dir)
        if (own := self._last_saved) is not None:
            steps = [step for step in steps if step <= own]
        order = sorted(steps, key=lambda step: (named is None or step <= named, step), reverse=True)
        return collectives.broadcast_object([disk.step_folder(self.output_dir, step) for step in order])

    def _first_complete(self, folders: list[Path], *, hashes: bool) -> Path | None:
        for folder in folders:
            if (problem := verify_together(folder, hashes=hashes)) is None:
                return folder
            if self._is_main:
                logger.warning(f"{problem}; trying the checkpoint before it")
        return None

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


def save_all(
    checkpointers: Iterable[Checkpointer[CheckpointConfig]], engines: Mapping[str, Engine], state: RunState
) -> None:
    """Saves with each of ``checkpointers``, though another fails; with those that a run can resume from last.

    A run that is killed in between resumes from before this step, and so saves with the others again. Raises the first
    `CheckpointError` when all have tried.
    """
    failure: CheckpointError | None = None
    for checkpointer in sorted(checkpointers, key=lambda one: one.resumable):
        try:
            checkpointer.save(engines, state)
        except CheckpointError as error:
            failure = failure or error
    if failure:
        raise failure


def _require_folder(temp: Path) -> None:
    if not temp.is_dir():
        raise OSError(f"{temp} does not exist here: is the disk shared by all machines?")


CheckpointEngine = Checkpointer
"""The former name of `Checkpointer`."""
