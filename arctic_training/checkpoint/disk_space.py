"""Whether a disk has room for the checkpoints of a run, by an estimate: told at the start, not found out at the end."""

import shutil
import sys
from typing import Any

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.logging import logger

_MASTER, _MOMENTS = 4, 8
"""Bytes of a weight's fp32 copy, and of the two moments that most optimizers keep of it."""


def warn_if_low(engine: Checkpointer[Any]) -> None:
    """Say so when what ``engine`` keeps, and the one it writes, are more than is free where they go; or are none."""
    if not process_group.is_main():
        return
    if not (count := _at_once(engine)):
        config, updates = engine.config, engine.trainer.training_horizon
        epochs = updates // (engine.trainer.steps_per_epoch or sys.maxsize)
        if 0 < updates < (every := config.save_every_n_steps):
            logger.warning(f"checkpoint.save_every_n_steps: {every}, and the run has {updates} updates: none is saved")
        elif updates > 0 and epochs < (every := config.save_every_n_epochs):
            logger.warning(f"checkpoint.save_every_n_epochs: {every}, and the run has {epochs} epochs: none is saved")
        return
    one, root = estimate(engine), engine.output_dir
    there = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    need, free = count * one - _written(engine), shutil.disk_usage(there).free
    if need > free:
        logger.warning(
            f"{root}: {count} checkpoints of some {_shown(one)} will be there at once, {_shown(need)} more than now, "
            f"and {_shown(free)} are free: make room, or keep fewer"
        )


def estimate(engine: Checkpointer[Any]) -> int:
    """Bytes of one checkpoint: the weights and, where a run can go on from it, what the optimizer holds of them."""
    total = 0
    for trained in engine.trainer.engines.values():
        if not isinstance(trained, TrainedEngine):
            continue
        for parameter in trained.module.parameters():
            count, width = getattr(parameter, "ds_numel", parameter.numel()), parameter.element_size()
            total += count * width
            if engine.resumable and parameter.requires_grad:
                total += count * (_MOMENTS + (_MASTER if width < _MASTER else 0))
    return total


def _at_once(engine: Checkpointer[Any]) -> int:
    """How many there will be, the one being written among them."""
    config, view = engine.config, engine.trainer
    horizon, epoch = view.training_horizon, view.steps_per_epoch * config.save_every_n_epochs
    saves = horizon // config.save_every_n_steps if config.save_every_n_steps else 0
    saves += horizon // epoch if epoch else 0
    saves += int(config.save_end_of_training)
    if not config.keep_last:
        return int(saves)
    kept = config.keep_last + config.keep_best + (horizon // config.keep_every if config.keep_every else 0)
    return int(min(kept + 1, saves))


def _written(engine: Checkpointer[Any]) -> int:
    """Bytes of those that are there already, which later ones take the place of."""
    folders = [disk.step_folder(engine.output_dir, step) for step in disk.list_steps(engine.output_dir)]
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:,.1f} MiB"
