"""What the parts of a run may know of it, as far as it follows from others: `TrainerView` says all."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine
from arctic_training.registry import lookup
from arctic_training.trainer.role import Role
from arctic_training.trainer.session import Session


class View:
    """Of `Trainer`."""

    config: Any
    session: Session
    engines: dict[str, Engine]
    roles: ClassVar[tuple[Role, ...]]

    @property
    def model(self) -> Engine:
        """The engine of the primary role."""
        return self.engines["model"]

    @property
    def trainable_engines(self) -> dict[str, Engine]:
        """The engines that change, and so are saved. A frozen role is a function of the recipe."""
        return {role.name: self.engines[role.name] for role in self.roles if not role.frozen}

    @property
    def device(self) -> torch.device:
        return process_group.device()

    @property
    def packs_samples(self) -> bool:
        factory: Any = lookup("data_factory", self.config.data.type)
        return bool(factory.packs(self.config.data))

    @property
    def data_rank(self) -> int:
        return process_group.rank() // int(self.config.sequence_parallel_size)

    @property
    def data_world(self) -> int:
        # data can be prepared by fewer processes than train on them
        return max(1, process_group.world_size() // int(self.config.sequence_parallel_size))

    @property
    def run_dir(self) -> Path:
        return self.session.run_dir
