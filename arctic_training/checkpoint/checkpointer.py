"""How a checkpoint comes to disk so that there is always a whole one, and is loaded; not what is in it."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import nn

from arctic_training.callback.hooks import hook
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint import retention
from arctic_training.checkpoint.standing import Standing, damage
from arctic_training.component import Factory, TrainerView
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine
from arctic_training.engine.hyperparameters import current_hyperparameters, override_hyperparameters
from arctic_training.errors.types import CheckpointError, ResumeError
from arctic_training.logging import logger
from arctic_training.state import RunState

C = TypeVar("C", bound=CheckpointConfig)


class Checkpointer(Standing, Factory[C, "Checkpointer[Any]"], kind="checkpoint_engine"):
    """Saves the engines of a run, and loads them. A subclass says in `write` and `read` what a checkpoint holds.

    All processes call `save`, `load` and `latest` together.
    """

    config_type = CheckpointConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "resumable" not in vars(cls):
            cls.resumable = cls.read is not Checkpointer.read
        super().__init_subclass__(**kwargs)

    def __init__(self, trainer: TrainerView, config: C) -> None:
        super().__init__(trainer, config)
        self.output_dir = config.folder(trainer.run_dir)
        self._noted: tuple[int, dict[str, float]] = (-1, {})
        self._told = False
        self._misnamed = False

    def __call__(self) -> Self:
        try:
            if process_group.is_main() and (wrecks := disk.remove_incomplete(self.output_dir)):
                logger.warning(f"{self.output_dir}: removed what a killed save left: {', '.join(wrecks)}")
        except OSError as error:
            logger.warning(f"{self.output_dir}: what a killed save left cannot be removed, and takes space: {error}")
        process_group.barrier()
        return self

    def dry_run(self, models: Mapping[str, nn.Module]) -> None:
        """Checks that what `write` would save of these models, by role, could be saved and loaded; writes nothing.

        Called before there are data, with models without weights where they tell enough, and again with those that are
        trained, before the first update. Raises `RecipeError`.
        """

    def check_state(self, state: RunState) -> None:
        """Checks, when every part of the run is made, that `write` could save what it remembers; or `RecipeError`."""

    @abstractmethod
    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any] | None:
        """Write everything into ``folder``, each process its own files; returns facts for the manifest (main's count).

        What needs the other processes must be done whether or not this one could write: raise OSError only after it.
        """

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        """Load a folder whose files were found whole. Raises `ResumeError` when it does not fit the run."""
        raise ResumeError(f"a checkpoint of type {self.name} is for use elsewhere; no run can go on from it")

    @property
    def latest(self) -> Path | None:
        """The newest whole checkpoint that this run saved or went on from; None when there is none.

        Sums are compared when it is loaded; here only that every file is there in its size.
        """
        return None if self._saved is None else self._first_whole(self._candidates(), sums=False)

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is any checkpoint, whole or not."""
        return bool(self._candidates())

    def warn_about_newer(self) -> None:
        """Warn of checkpoints of updates that the run, as it starts, has yet to come to: they are of another start."""
        if not self._main:
            return
        if ahead := [step for step in disk.list_steps(self.output_dir) if step > self.trainer.progress.step]:
            logger.warning(
                f"{self.output_dir} holds checkpoints from before that are ahead of this run, step_{ahead[0]} to "
                f"step_{ahead[-1]}: they stay until it saves the same updates, and count for nothing until then"
            )

    @property
    def best_metric(self) -> str:
        """The metric that tells which checkpoints are the best."""
        return self.config.best_metric or f"loss/{next(iter(self.trainer.eval_loaders), 'eval')}"

    def record_metrics(self, values: Mapping[str, float]) -> None:
        """Keep what was measured after the update just taken with its checkpoint, be that saved already or not yet."""
        step = self.trainer.progress.step
        self._noted = (step, {name: float(value) for name, value in values.items()})
        if self.config.keep_best and self.best_metric not in values and not self._misnamed:
            self._misnamed = True
            logger.warning(
                f"the evaluation after step {step} measured {', '.join(values) or 'nothing'}, and not "
                f"{self.best_metric}, by which checkpoint has to find the best"
            )
        folder = disk.step_folder(self.output_dir, step)
        if self._saved == step and self.config.enabled:
            self._tidy(
                step, lambda: disk.update_manifest(folder, {"values": self._noted[1]}) if folder.is_dir() else None
            )

    @hook("save")
    def save(self, engines: Mapping[str, Engine], state: RunState) -> Path | None:
        """Write the checkpoint of the update just taken; returns its folder.

        When the disk refuses (full, read-only, gone) the attempt's space is given back, earlier checkpoints stay, and
        the run goes on: None is returned. At its end, or with ``on_save_error: stop``, it is a `CheckpointError`.
        """
        config, step = self.config, self.trainer.progress.step
        aside = self.output_dir / f".aside-step_{step}"
        try:
            self._on_all_ranks("create", lambda: disk.create_temp_dir(self.output_dir, step) if self._main else None)
            self._on_all_ranks("reach", lambda: _require_folder(aside))
            facts = self._on_all_ranks("write", lambda: self.write(aside, engines, state))[0] or {}
            names = disk.list_files(aside)
            mine = names[process_group.rank() :: process_group.world_size()]
            sums = self._on_all_ranks("flush", lambda: disk.fsync_and_hash(aside, mine))
            about: dict[str, Any] = {"run": self.guard.facts} if self.guard else {}
            values = self._noted[1] if self._noted[0] == step else {}
            about |= {"stopped": self.stopped} if self.stopped else {}
            facts = {"type": self.name, "world": process_group.world_size(), **about, "values": values, **facts}
            every = {name: one for part in sums for name, one in part.items()}
            self._on_all_ranks("commit", lambda: disk.commit(aside, step, every, facts) if self._main else None)
        except CheckpointError as error:
            if self._main:
                disk.remove_temp_dir(aside)
            if self._ending or config.on_save_error == "stop":
                raise
            logger.error(f"{error}; the run goes on, and the checkpoints before it are untouched")
            return None
        self._saved = self._settled = step
        unmeasured = self._noted[0] != step and not self._measures_yet
        if config.keep_best and unmeasured and not self._told:
            self._told = True
            logger.warning(
                f"the checkpoint of step {step} has no {self.best_metric}, so that it cannot be the best: "
                "save at updates at which there is an evaluation"
            )
        self._tidy(step)
        return disk.step_folder(self.output_dir, step)

    @hook("load")
    def load(self, engines: Mapping[str, Engine], state: RunState, path: Path | None = None) -> Path:
        """Go on from ``path``, or from the newest whole checkpoint; returns the folder.

        Everything is verified before anything is loaded. Raises `ResumeError` for a folder that is damaged, is of
        another run or does not fit, and when there is none.
        """
        there = [] if path else self._candidates()
        folder = path or self._first_whole(there, sums=True)
        if folder is None:
            why = f": {damage(there[0], sums=True)}" if there else ""
            raise ResumeError(f"{self.output_dir} holds no whole checkpoint to go on from{why}")
        if path is not None and (wrong := damage(path, sums=True)):
            raise ResumeError(wrong)
        try:
            manifest = disk.read_manifest(folder)
            if manifest.get("type") != self.name:
                raise ResumeError(f"{folder} is a checkpoint of type {manifest.get('type')!r}, not {self.name!r}")
            changes = self.guard.check_compatible(folder, manifest) if self.guard else []
            if any(change.named_by(["callbacks"]) for change in changes):  # new ones begin, and others are no more
                state = state.allow_missing("callback.")
            recipe = [current_hyperparameters(engine) for engine in engines.values()]
            self.read(folder, manifest, engines, state)
        except ResumeError:
            raise
        except CheckpointError as error:
            raise ResumeError(str(error)) from error
        if changes:
            logger.success(f"goes on under other settings, as allow_changes says: {'; '.join(map(str, changes))}")
            for engine, told in zip(engines.values(), recipe, strict=True):
                override_hyperparameters(engine, told)
        self._settled = int(manifest["step"])
        if folder.parent.absolute() == self.output_dir.absolute():
            self._saved = self._settled
        stopped = str(manifest.get("stopped", ""))
        past = bool(changes) or (self.guard is not None and self.guard.ignores_stop)
        self.stopped = "" if past else stopped
        if stopped and past:
            logger.success(f"goes on past the stop at step {self._settled}: {stopped}")
        return folder

    @property
    def _measures_yet(self) -> bool:
        """Whether the evaluation at the end of the run, which comes after its last save, is still to come."""
        return self._ending and self.trainer.config.evaluate_last

    def _candidates(self) -> list[Path]:
        """What `load` would try, in this order: what ``latest`` names, those before it, those after it.

        Those after it are another run's, from whose folder this run began anew.
        """
        named, steps = disk.latest_step(self.output_dir), disk.list_steps(self.output_dir)
        if (own := self._saved) is not None:
            steps = [step for step in steps if step <= own]
        order = sorted(steps, key=lambda step: (named is None or step <= named, step), reverse=True)
        return collectives.broadcast_object([disk.step_folder(self.output_dir, step) for step in order])

    def _first_whole(self, folders: list[Path], *, sums: bool) -> Path | None:
        for folder in folders:
            if (wrong := damage(folder, sums=sums)) is None:
                return folder
            if self._main:
                logger.warning(f"{wrong}; trying the checkpoint before it")
        return None

    def _tidy(self, step: int, first: Callable[[], Any] = lambda: None) -> None:
        """Remove what need not be kept. What the disk refuses is tried again next time: the new one is whole."""

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
            self._on_all_ranks("tidy", lambda: act() if self._main else None)
        except CheckpointError as error:
            logger.warning(f"{error}; what is saved is whole, and this is tried again at the next save")


def save_all(engines: Iterable[Checkpointer[Any]], trained: Mapping[str, Engine], state: RunState) -> None:
    """Save with each of ``engines``, though another fails; those that a run can go on from last.

    A run that is killed in between goes on from before this update, and so saves with the others again.
    """
    failed: CheckpointError | None = None
    for engine in sorted(engines, key=lambda one: one.resumable):
        try:
            engine.save(trained, state)
        except CheckpointError as error:
            failed = failed or error
    if failed:
        raise failed


def _require_folder(aside: Path) -> None:
    if not aside.is_dir():
        raise OSError(f"{aside} is not there: is the disk shared by all machines?")


CheckpointEngine = Checkpointer
"""The former name of `Checkpointer`."""
