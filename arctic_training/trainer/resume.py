"""From which checkpoint a run goes on, if from any; and what the run is, which that checkpoint must be of."""

from pathlib import Path
from typing import Any

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.checkpoint.compatibility import CompatibilityGuard
from arctic_training.config.sections.component import listed
from arctic_training.data.batching import fingerprint
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import ResumeError
from arctic_training.logging import logger


def resume(trainer: Any) -> None:
    """Go on from the run's own newest checkpoint, or from the one that the recipe's ``resume`` names; say which.

    Raises `ResumeError`: a run that is to go on never begins anew because it cannot.
    """
    told: Path | None = trainer.config.resume
    own = next((engine for engine in trainer.checkpointers if engine.config.auto_resume), None)
    if told is None and not trainer.checkpointers:
        return
    guard = build_guard(trainer)
    for engine in trainer.checkpointers:
        engine.guard = guard
    if own is not None and own.has_checkpoints:
        reader, folder = own, own.load(trainer.trainable_engines, trainer.state)
        rest = f"; it is newer than what `resume` names, {told}" if told is not None else ""
    elif told is not None:
        named = find_checkpoint(told)
        reader = _find_reader(trainer, named, guard)
        folder, rest = reader.load(trainer.trainable_engines, trainer.state, named), ""
    else:
        if own is not None:
            logger.success(f"{own.output_dir} holds no checkpoint: the run starts from its beginning")
        return
    for engine in trainer.checkpointers:
        engine.mark_resumed(disk.read_manifest(folder))
        engine.stopped = reader.stopped
    trainer.resumed = True
    if reader.stopped:
        trainer.stop(reader.stopped)
    logger.success(f"goes on after update {trainer.progress.step}, from {folder}{rest}")


def build_guard(trainer: Any) -> CompatibilityGuard:
    """What this run is."""
    prints: dict[str, Any] = {}
    if process_group.is_main():
        prints = fingerprint.of_data(trainer.train_loader)
        if trainer.tokenizer is not None:
            prints["tokenizer.files"] = fingerprint.of_tokenizer(trainer.tokenizer)
    config = trainer.config
    rows = config.micro_batch_size * config.gradient_accumulation_steps * trainer.data_world
    return CompatibilityGuard(config, collectives.broadcast_object(prints) | {"global_batch_size": rows})


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` is, or the newest in it, whole or not. Raises `ResumeError` when there is none."""
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise ResumeError(f"resume: {path}: no such folder")
    if disk.is_checkpoint(path):
        return path
    steps = disk.list_steps(path)
    if not steps:
        raise ResumeError(f"resume: {path} is neither a checkpoint nor a folder of them")
    latest = disk.latest_step(path)
    return disk.step_folder(path, latest if latest in steps else steps[-1])


def _find_reader(trainer: Any, folder: Path, guard: CompatibilityGuard) -> Checkpointer[Any]:
    """What reads the checkpoint ``folder``: the run's own engine of its type, or one made for that alone."""
    if wrong := disk.verify(folder, sums=False):
        raise ResumeError(f"resume: {wrong}")
    kind = disk.read_manifest(folder).get("type")
    for engine in trainer.checkpointers:
        if engine.name == kind:
            return engine  # type: ignore[no-any-return]
    known: dict[str, Any] = {cls.name: cls for cls in listed(type(trainer).checkpoint_engine_type)}
    if kind not in known:
        raise ResumeError(f"resume: {folder} is a checkpoint of type {kind!r}; this trainer reads {', '.join(known)}")
    made: Checkpointer[Any] = known[kind](trainer, known[kind].config_type(type=kind, output_dir=folder.parent))
    made.guard = guard
    return made
