"""Warns at the start of a run when the disk has too little space for its checkpoints, by an estimate."""

import shutil
import sys

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.parameters import full_shape
from arctic_training.logging import logger

_MASTER_BYTES, _MOMENT_BYTES = 4, 8
"""Bytes of a weight's fp32 copy, and of the two moments that most optimizers keep of it."""


def warn_if_low(checkpointer: Checkpointer[CheckpointConfig]) -> None:
    """Warns when the checkpoints that are kept at once need more than is free, or when none will be saved."""
    if not process_group.is_main():
        return
    if not (count := _max_count(checkpointer)):
        config, steps = checkpointer.config, checkpointer.trainer.training_horizon
        epochs = steps // (checkpointer.trainer.steps_per_epoch or sys.maxsize)
        if 0 < steps < (every := config.save_every_n_steps):
            logger.warning(f"checkpoint.save_every_n_steps: {every}, and the run has {steps} steps: none is saved")
        elif steps > 0 and epochs < (every := config.save_every_n_epochs):
            logger.warning(f"checkpoint.save_every_n_epochs: {every}, and the run has {epochs} epochs: none is saved")
        return
    one, root = estimate(checkpointer), checkpointer.output_dir
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    folders = [disk.step_folder(root, step) for step in disk.list_steps(root)]  # which later ones replace
    used = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    need, free = count * one - used, shutil.disk_usage(existing).free
    if need > free:
        each, more, left = (_format_size(size) for size in (one, need, free))
        logger.warning(
            f"{root}: {count} checkpoints of about {each} exist at once, {more} more than now, "
            f"and {left} are free: free some space, or keep fewer"
        )


def estimate(checkpointer: Checkpointer[CheckpointConfig]) -> int:
    """Returns the bytes of one checkpoint: weights and, where a run can resume from it, the optimizer's state."""
    total, trainable_only = 0, getattr(checkpointer.config, "trainable_only", False)
    for trained in checkpointer.trainer.engines.values():
        if not isinstance(trained, TrainedEngine):
            continue
        for parameter in trained.module.parameters():
            count, width = full_shape(parameter).numel(), parameter.element_size()
            total += count * width if parameter.requires_grad or not trainable_only else 0
            if checkpointer.resumable and parameter.requires_grad:
                total += count * (_MOMENT_BYTES + (_MASTER_BYTES if width < _MASTER_BYTES else 0))
    return total


def _max_count(checkpointer: Checkpointer[CheckpointConfig]) -> int:
    """Returns how many checkpoints exist at most at once, including the one being written."""
    config, view = checkpointer.config, checkpointer.trainer
    horizon, epoch = view.training_horizon, view.steps_per_epoch * config.save_every_n_epochs
    saves = horizon // config.save_every_n_steps if config.save_every_n_steps else 0
    saves += horizon // epoch if epoch else 0
    saves += int(config.save_end_of_training)
    if not config.keep_last:
        return int(saves)
    kept = config.keep_last + config.keep_best + (horizon // config.keep_every if config.keep_every else 0)
    return int(min(kept + 1, saves))


def _format_size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:,.1f} MiB"
