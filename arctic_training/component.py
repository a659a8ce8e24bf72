"""A factory makes one part of a run out of its section of the recipe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from arctic_training.callback.hooks import Hooked
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.registry import Registered
from arctic_training.state import Progress

C = TypeVar("C", bound=ComponentConfig)
P = TypeVar("P")


class TrainerView(Protocol):
    """What a part may know of the run it is made for. Parts import this; none imports the trainer."""

    @property
    def config(self) -> TrainerConfig: ...
    @property
    def tokenizer(self) -> Any:
        """None until the tokenizer is made, and where there is none."""

    @property
    def progress(self) -> Progress: ...
    @property
    def engines(self) -> Mapping[str, Any]:
        """The engine of each role that has been made, by the role's name."""

    @property
    def eval_loaders(self) -> Mapping[str, Any]:
        """The loaders of the evaluation data, by name; empty until the data are made."""

    @property
    def packs_samples(self) -> bool:
        """Whether a row of a batch holds several samples, as the data factory says."""

    @property
    def device(self) -> torch.device: ...
    @property
    def data_rank(self) -> int:
        """Which of the ``data_world`` parts of every global batch this process reads."""

    @property
    def data_world(self) -> int: ...
    @property
    def training_horizon(self) -> int:
        """Optimizer updates in the whole run, not only in what is left of it."""

    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def warmup_steps(self) -> int:
        """Optimizer updates of warm-up."""

    @property
    def run_dir(self) -> Path: ...


class Factory(Registered, Hooked, ABC, Generic[C, P]):
    """Base of everything that a section of the recipe makes. ``config_type`` reads the section."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, trainer: TrainerView, config: C) -> None:
        self.trainer, self.config = trainer, config

    @abstractmethod
    def __call__(self, *args: Any) -> P: ...
