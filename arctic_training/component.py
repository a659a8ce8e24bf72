"""The base of all factories, and the view of a run that components have."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch

from arctic_training.callback.hooks import Hooked
from arctic_training.config.sections.base import C, ComponentConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.engine.engine import Engine
from arctic_training.metrics import Number
from arctic_training.registry import Registered
from arctic_training.state import Progress, RunState
from arctic_training.tracker.samples import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

P = TypeVar("P")


class TrainerView(Protocol):
    """The interface of a trainer that components and callbacks use; none of them imports the trainer."""

    @property
    def config(self) -> TrainerConfig:
        """The config of the run."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """None until the tokenizer is built, and in runs without one."""

    @property
    def progress(self) -> Progress:
        """The position of the run."""

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engines built so far, by role."""

    @property
    def trainable_engines(self) -> Mapping[str, Engine]:
        """The engines that are trained and saved, by role."""

    @property
    def trained_roles(self) -> Sequence[str]:
        """The roles that are trained, whether their engines are built or not."""

    @property
    def checkpointers(self) -> Sequence[Any]:
        """The checkpoint engines of the recipe."""

    @property
    def state(self) -> RunState:
        """The parts of the run that are saved."""

    @property
    def train_loader(self) -> Any:
        """The loader of the training data."""

    @property
    def window(self) -> Any:
        """The current `AccumulationWindow`."""

    @property
    def train_batches(self) -> Iterator[Any]:
        """The remaining micro-batches of the current epoch."""

    def step(self, batch: object) -> None:
        """Trains on one micro-batch."""

    def listen(self, event: str, listener: Callable[..., object]) -> None:
        """Calls ``listener`` at ``event`` from now on."""

    callbacks: list[tuple[str, Callable[..., object]]]
    """The listeners, in their order."""
    skipped_windows: set[tuple[int, int]]
    """Epoch and first row of windows that are not trained on."""

    def averaged(
        self, role: str = "model", *, purpose: Literal["evaluate", "export"] | None = None
    ) -> AbstractContextManager[None]:
        """Runs the block with the average of the role's weights in place of them, where its optimizer or a callback
        `ema` keeps one."""

    def export_files(self) -> Mapping[str, str]:
        """Returns the text of files, by name, that an exported model has beside weights, config and tokenizer."""

    def record(self, name: str, value: Number, weight: Number = 1) -> None:
        """Adds a scalar to the mean that is logged as ``name``."""

    def log_samples(self, name: str, samples: Samples) -> None:
        """Writes ``samples`` to ``samples/<name>`` in the run folder, and sends them to the trackers."""

    def stop(self, reason: str) -> None:
        """Ends the run for good after the current step; called on every rank."""

    def request_stop(self, reason: str, exit_code: int = 0) -> None:
        """Stops the run soon, to be resumed later; may be called on one rank."""

    def load_checkpoint(self, engine: object, path: Path | None = None) -> Path:
        """Loads the checkpoint ``path``, or the newest complete one of ``engine``; called on every rank."""

    @property
    def stop_requested(self) -> bool:
        """Returns whether the run was stopped to be resumed later."""

    def checkpoint(self, engines: Sequence[Any] | None = None) -> None:
        """Saves now, with ``engines`` or with every checkpoint engine of the recipe; called on every rank."""

    @property
    def eval_loaders(self) -> Mapping[str, Any]:
        """The loaders of the evaluation sets, by name; empty until the data are built."""

    @property
    def packs_samples(self) -> bool:
        """Returns whether a row of a batch holds several samples."""

    @property
    def device(self) -> torch.device:
        """The device of this rank."""

    @property
    def has_weights(self) -> bool:
        """Returns whether the models have weights; False where ``validate`` checks them on the meta device."""

    @property
    def data_rank(self) -> int:
        """The index of the part of every global batch that this rank reads, of ``data_world`` parts."""

    @property
    def data_world(self) -> int:
        """The number of groups of ranks that read different data."""

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole run, those already taken included."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; 0 for a stream without ``epoch_length``."""

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of warm-up."""

    @property
    def run_dir(self) -> Path:
        """The run folder."""


class _OfTrainer:
    """An attribute of the trainer, until the component has one of its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, part: object, owner: type | None = None) -> object:
        return self if part is None else attrgetter(f"trainer.{self.name}")(part)


class FormerAttributes:
    """Attributes that components of ArcticTraining 0.8 have: those of their trainer, which says what they are here."""

    device = _OfTrainer()
    global_rank = _OfTrainer()
    world_size = _OfTrainer()


class Factory(Registered, Hooked, FormerAttributes, ABC, Generic[C, P]):
    """Base class of factories: each builds one component from a section of the recipe, read by ``config_type``."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, trainer: TrainerView, config: C) -> None:
        self.trainer, self.config = trainer, config

    __call__: Callable[..., P]
    """Builds the component. Each kind of factory defines it with the arguments that it takes."""
