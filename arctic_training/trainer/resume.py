"""Resumes a run: finds the checkpoint, checks that it is of the same run, loads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arctic_training.callback.hooks import hook
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.checkpoint.compatibility import CompatibilityGuard
from arctic_training.component import TrainerView
from arctic_training.config.sections.component import listed
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching import fingerprint
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import ResumeError
from arctic_training.logging import logger
from arctic_training.state import RunState


class Loading:
    """Part of `Trainer`: loads a checkpoint into the run."""

    state: RunState

    @hook("load_checkpoint")
    def load_checkpoint(self: TrainerView, engine: object, path: Path | None = None) -> Path:
        """Loads the checkpoint ``path``, or the newest complete one of a `Checkpointer`, and returns its folder.

        All ranks call it together. Raises `ResumeError` for one that cannot be used.
        """
        assert isinstance(engine, Checkpointer)
        return engine.load(self.trainable_engines, self.state, path)


def resume(trainer: Any) -> None:
    """Resumes from the run's own newest checkpoint, or from the one that the recipe's ``resume`` names; logs which.

    Raises `ResumeError` when the checkpoint cannot be used: the run then never starts from scratch instead.
    """
    requested: Path | None = trainer.config.resume
    if requested is None and not trainer.checkpointers:
        return
    reader, named = _choose(trainer, build_guard(trainer))
    if reader is None:
        for engine in trainer.checkpointers:
            if engine.config.auto_resume:
                logger.success(f"no checkpoint found in {engine.output_dir}; starting from scratch")
        return
    folder = trainer.load_checkpoint(reader, named)
    is_newer = requested is not None and named is None
    rest = f"; it is newer than what `resume` names, {requested}" if is_newer else ""
    for engine in trainer.checkpointers:
        engine.mark_resumed(disk.read_manifest(folder))
        engine.stopped = reader.stopped
    trainer.resumed = True
    if reader.stopped:
        trainer.stop(reader.stopped)
    logger.success(f"resumed from {folder} at step {trainer.progress.step}{rest}")


def check_resume(trainer: TrainerView, config: TrainerConfig, prints: Mapping[str, str]) -> None:
    """Raises the `ResumeError` by which the run would refuse its checkpoint, as far as ``config``, its recipe, the
    manifest and ``prints``, those of its `fingerprints` that are known, show it."""
    reader, named = _choose(trainer, CompatibilityGuard(config, prints))
    if reader is not None:
        reader.find(trainer.trained_roles, named, hashes=False)


def _choose(trainer: TrainerView, guard: CompatibilityGuard) -> tuple[Checkpointer[Any] | None, Path | None]:
    """Returns who loads the checkpoint that the run resumes from, and that which the recipe's ``resume`` names; None
    for its own newest. Without either the run begins anew."""
    for engine in trainer.checkpointers:
        engine.guard = guard
    own = next((engine for engine in trainer.checkpointers if engine.config.auto_resume), None)
    if own is not None and own.has_checkpoints:
        return own, None
    if trainer.config.resume is None:
        return None, None
    named = find_checkpoint(trainer.config.resume)
    return _find_reader(trainer, named, guard), named


def build_guard(trainer: TrainerView) -> CompatibilityGuard:
    """Returns the guard that compares this run with the one of a checkpoint."""
    prints = fingerprints(trainer) if process_group.is_main() else {}
    config = trainer.config
    rows = config.micro_batch_size * config.gradient_accumulation_steps * trainer.data_world
    return CompatibilityGuard(config, collectives.broadcast_object(prints) | {"global_batch_size": rows})


def fingerprints(trainer: TrainerView) -> dict[str, str]:
    """Returns the fingerprints of the samples of a run, of its rows and of its tokenizer."""
    prints = fingerprint.of_data(trainer.train_loader)
    if trainer.tokenizer is not None:
        prints["tokenizer.files"] = fingerprint.of_tokenizer(trainer.tokenizer)
    return prints


def find_checkpoint(path: Path) -> Path:
    """Returns the checkpoint that ``path`` is, or the newest in it, complete or not. Raises `ResumeError` for none."""
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise ResumeError(f"resume: {path}: no such folder")
    if disk.is_checkpoint(path):
        return path
    if not (steps := disk.newest_first(path)):
        raise ResumeError(f"resume: {path} is neither a checkpoint nor a folder of them")
    return disk.step_folder(path, steps[0])


def _find_reader(trainer: Any, folder: Path, guard: CompatibilityGuard) -> Checkpointer[Any]:
    """Returns the run's checkpoint engine of the type of ``folder``, or a new one of that type."""
    if damage := disk.verify(folder, hashes=False):
        raise ResumeError(f"resume: {damage}")
    kind = disk.read_manifest(folder).get("type")
    for engine in trainer.checkpointers:
        if engine.name == kind:
            return engine  # type: ignore[no-any-return]
    known: dict[str, Any] = {cls.name: cls for cls in listed(type(trainer).checkpoint_engine_type)}
    if kind not in known:
        raise ResumeError(f"resume: {folder} is a checkpoint of type {kind!r}; this trainer reads {', '.join(known)}")
    reader: Checkpointer[Any] = known[kind](trainer, known[kind].config_type(type=kind, output_dir=folder.parent))
    reader.guard = guard
    return reader
