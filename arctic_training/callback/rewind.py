"""Going back to the newest checkpoint of the run, from which the loop continues without the window just trained on."""

from typing import NoReturn

from arctic_training.callback.callback import RewindTraining
from arctic_training.component import TrainerView
from arctic_training.errors.types import TrainingError
from arctic_training.logging import logger


def rewind(trainer: TrainerView, why: str, setting: str, error: type[TrainingError]) -> NoReturn:
    """Loads the newest checkpoint of this run and raises `RewindTraining`; the window is never trained on again.

    All ranks call it together, in ``pre_after_update``. Raises ``error``, which names the ``setting`` that asks for it,
    when this run has no checkpoint yet.
    """
    engine = next(one for one in trainer.checkpointers if one.resumable)
    if engine.latest is None:
        raise error(f"{why}. {setting} finds no checkpoint of this run yet in {engine.output_dir}")
    trainer.skipped_windows.add((trainer.progress.epoch, first_row(trainer)))
    folder = trainer.load_checkpoint(engine)
    logger.warning(f"{why}; goes back to {folder}, and leaves that window out")
    raise RewindTraining


def first_row(trainer: TrainerView) -> int:
    """Returns the index of the first row of the window just trained on."""
    return int(trainer.progress.sample_index - trainer.window.size * trainer.train_loader.stride)
