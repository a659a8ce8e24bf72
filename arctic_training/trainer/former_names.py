"""Attributes of a trainer by the names that ArcticTraining 0.8 has for them."""

import warnings
from operator import attrgetter

from torch.distributed import ProcessGroup

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import process_group


class FormerName:
    """An attribute by a former name: reads what it is called now, with a warning that says so."""

    def __init__(self, now: str) -> None:
        """``now`` is a path of attributes of the trainer."""
        self.now, self.name = now, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trainer: object, owner: type | None = None) -> object:
        if trainer is None:
            return self
        warn(self.name, f"trainer.{self.now}")
        return attrgetter(self.now)(trainer)


def warn(name: str, now: str, *, stacklevel: int = 3) -> None:
    """Warns that the attribute ``name`` of a trainer is called ``now``."""
    warnings.warn(f"trainer.{name} will be removed; write {now}", FutureWarning, stacklevel=stacklevel)


class FormerNames:
    """Part of `Trainer`: attributes that code for ArcticTraining 0.8 reads."""

    config: TrainerConfig

    global_step = FormerName("progress.step")
    epoch_idx = FormerName("progress.epoch")
    model_unwrapped = FormerName("model.module")
    optimizer = FormerName("model.optimizer")
    scheduler = FormerName("model.lr_scheduler")
    checkpoint_engines = FormerName("checkpointers")
    train_dataloader = FormerName("train_loader")
    eval_dataloader_map = FormerName("eval_loaders")

    @property
    def global_rank(self) -> int:
        """The rank of this process."""
        warn("global_rank", "arctic_training.rank()")
        return process_group.rank()

    @property
    def world_size(self) -> int:
        """The number of processes."""
        warn("world_size", "arctic_training.world_size()")
        return process_group.world_size()

    @property
    def sp_group(self) -> ProcessGroup | None:
        """The ranks that share sequences with this one; None where none do. All ranks read it together first."""
        warn("sp_group", "arctic_training.distributed.process_group.rank_group(size)")
        size = int(self.config.sequence_parallel_size)
        return process_group.rank_group(size) if size > 1 else None
