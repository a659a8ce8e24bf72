"""A trainer before its parts are built: for a run that begins, and for what needs some of its parts only."""

from typing import TypeVar

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.metrics import Metrics
from arctic_training.state import Progress
from arctic_training.trainer.named_runs import find_named_runs, with_checkpoints
from arctic_training.trainer.throughput import Throughput
from arctic_training.trainer.window import AccumulationWindow

T = TypeVar("T")


def bare(trainer_type: type[T], config: TrainerConfig, session: object = None) -> T:
    """Returns a trainer of which no part is built. No event is announced, and nothing is written.

    ``trainer_type`` is a `Trainer`. What is built of it later is the caller's choice: see the functions of `assembly`.
    ``session`` is a `Session`, or what has the attributes of one that these parts read; None: they read none. Runs that
    ``config`` names as models are replaced by their checkpoints. Raises `InputError` for one that has none.
    """
    trainer = trainer_type.__new__(trainer_type)
    set_up(trainer, with_checkpoints(config, find_named_runs(config)))
    if session is not None:
        vars(trainer)["session"] = session
    return trainer


def set_up(trainer: object, config: TrainerConfig) -> None:
    """Gives ``trainer``, a `Trainer`, its config and what it has before any part is built."""
    progress = Progress()
    vars(trainer).update(
        config=config,
        progress=progress,
        metrics=Metrics(),
        window=AccumulationWindow([]),
        throughput=Throughput(progress),
        exit_code=0,
        skipped_windows=set(),
        listeners={},
        engines={},
        checkpointers=[],
        evaluators=[],
        train_loader=None,
        eval_loaders={},
    )
