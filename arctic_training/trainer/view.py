"""Properties of a run that its components may read; the interface is `component.TrainerView`."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine
from arctic_training.registry import lookup
from arctic_training.state import Progress
from arctic_training.tracker.samples import Samples
from arctic_training.trainer.former_names import FormerNames
from arctic_training.trainer.role import Role
from arctic_training.trainer.session import Session


class View(FormerNames):
    """Part of `Trainer`: what follows from its config, engines and process group."""

    config: Any
    session: Session
    progress: Progress
    engines: dict[str, Engine]
    roles: ClassVar[tuple[Role, ...]]
    tensor_parallel: ClassVar[bool] = False
    """Whether `loss` is correct where processes divide the weights of the model; a class with a loss of its own states
    it again."""

    @property
    def model(self) -> Engine:
        """The engine of the primary role."""
        return self.engines["model"]

    @property
    def trainable_engines(self) -> dict[str, Engine]:
        """Engines that are trained and saved, by role. A frozen role is determined by the recipe."""
        return {role: self.engines[role] for role in self.trained_roles}

    @property
    def trained_roles(self) -> list[str]:
        """The roles that are trained, whether their engines are built or not."""
        return [role.name for role in self.roles if not role.frozen]

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return process_group.device()

    @property
    def has_weights(self) -> bool:
        """Returns whether the models have weights; False where ``validate`` checks them on the meta device, on which
        outputs have a shape and no numbers."""
        return self.device.type != "meta"

    @property
    def packs_samples(self) -> bool:
        """Returns whether a row of a batch holds several samples."""
        factory: Any = lookup("data_factory", self.config.data.type)
        return bool(factory.packs(self.config.data))

    @property
    def data_rank(self) -> int:
        """The rank among the groups of ranks that read different data."""
        return process_group.rank() // int(self.config.ranks_per_row)

    @property
    def data_world(self) -> int:
        """The number of groups of ranks that read different data."""
        # data can be prepared by fewer processes than train on them
        return max(1, process_group.world_size() // int(self.config.ranks_per_row))

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.session.run_dir

    def check_recipe(self) -> None:
        """Called before anything is loaded, and by ``validate``. Raises `InputError` for what the recipe shows."""

    def check_data(self) -> None:
        """Called when the data are prepared, before any weights are loaded, and by ``validate`` where these are small
        local files. Raises `InputError` for data that the objective cannot use."""

    def check(self) -> None:
        """Called when all parts are built and nothing is written yet, and by ``validate``, where engines train nothing
        and `has_weights` may be False. Raises `InputError` for what would fail later."""

    def export_files(self) -> dict[str, str]:
        """Returns the text of files, by name, that an exported model has beside weights, config and tokenizer."""
        return {}

    def log_samples(self, name: str, samples: Samples) -> None:
        """Writes ``samples`` to ``samples/<name>`` in the run folder, and sends them to the trackers."""
        self.session.log_samples(name, samples, self.progress.step)
