"""Checkpoints of a run: saved as `saving` says, found and loaded. Subclasses define the contents."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn

from arctic_training.callback.hooks import hook
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.model_methods import adopt_model_methods
from arctic_training.checkpoint.saving import Saving
from arctic_training.checkpoint.schedule import C, verify_together
from arctic_training.component import Factory, TrainerView
from arctic_training.config.sections.changes import Change
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.display.activity import activity
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine
from arctic_training.engine.hyperparameters import current_hyperparameters, override_hyperparameters
from arctic_training.errors.types import CheckpointError, ResumeError
from arctic_training.logging import logger
from arctic_training.state import RunState


class Checkpointer(Saving[C], Factory[C, "Checkpointer[CheckpointConfig]"], kind="checkpoint_engine"):
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

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        """Loads a verified checkpoint into engines and state. Raises `ResumeError` when it does not fit the run."""
        raise NotImplementedError

    @property
    def latest(self) -> Path | None:
        """The newest complete checkpoint that this run saved or resumed from; None when it has none.

        A save that is under way is waited for. Only the presence and size of the files are checked; their hashes are
        when it is loaded.
        """
        self.finish()
        return None if self._last_saved is None else self._first_complete(self._candidates(), hashes=False)

    @property
    def has_checkpoints(self) -> bool:
        """Returns whether there is any checkpoint, complete or not."""
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

    def find(
        self, roles: Iterable[str], path: Path | None = None, *, hashes: bool = True
    ) -> tuple[Path, Mapping[str, Any], Sequence[Change]]:
        """Returns the folder that `load` loads for the trained ``roles``, its manifest, and the changes of the recipe
        since it was saved.

        ``hashes`` says whether the content of its files is verified too. Raises `ResumeError` as `load` does.
        """
        candidates = [] if path else self._candidates()
        folder = path or self._first_complete(candidates, hashes=hashes)
        if folder is None:
            why = f": {verify_together(candidates[0], hashes=hashes)}" if candidates else ""
            raise ResumeError(f"{self.output_dir} holds no complete checkpoint to resume from{why}")
        if path is not None and (problem := verify_together(path, hashes=hashes)):
            raise ResumeError(problem)
        manifest = disk.read_manifest(folder)
        if manifest.get("type") != self.name:
            raise ResumeError(f"{folder} is a checkpoint of type {manifest.get('type')!r}, not {self.name!r}")
        if not self.resumable:
            raise ResumeError(f"{folder} is of type {self.name}, for use elsewhere; no run can resume from it")
        changes = self.guard.check_compatible(folder, manifest) if self.guard else []
        if odd := sorted({*roles} ^ {*manifest.get("roles", roles)}):
            raise ResumeError(f"{folder} and this run have different trained models: {', '.join(odd)}")
        return folder, manifest, changes

    @hook("load")
    def load(self, engines: Mapping[str, Engine], state: RunState, path: Path | None = None) -> Path:
        """Loads the checkpoint ``path``, or the newest complete one; returns its folder.

        Everything is verified before anything is loaded. Raises `ResumeError` for a folder that is damaged, is of
        another run or does not fit, and when there is none.
        """
        self.finish()
        try:
            folder, manifest, changes = self.find(engines, path)
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

    def _candidates(self) -> list[Path]:
        """Returns what `load` tries, in order."""
        steps, own = disk.newest_first(self.output_dir), self._last_saved
        order = [step for step in steps if own is None or step <= own]
        return collectives.broadcast_object([disk.step_folder(self.output_dir, step) for step in order])

    def _first_complete(self, folders: list[Path], *, hashes: bool) -> Path | None:
        for folder in folders:
            if (problem := verify_together(folder, hashes=hashes)) is None:
                return folder
            if self._is_main:
                logger.warning(f"{problem}; trying the checkpoint before it")
        return None


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
            with activity(f"saving {checkpointer.name}", aside=True):
                checkpointer.save(engines, state)
        except CheckpointError as error:
            failure = failure or error
    if failure:
        raise failure


CheckpointEngine = Checkpointer
"""The former name of `Checkpointer`."""
