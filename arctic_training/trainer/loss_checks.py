"""Checks that the loss is a scalar tensor with a gradient, and that it holds every term that it should."""

import torch

from arctic_training.component import TrainerView
from arctic_training.distributed import sequence_parallel
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import TrainingError
from arctic_training.model import auxiliary_losses
from arctic_training.registry import qualified_name


def require_scalar(trainer: object, loss: object) -> None:
    """Raises `TrainingError` unless ``loss`` is a tensor of one element with a gradient."""
    if not isinstance(loss, torch.Tensor):
        problem = f"is {short_repr(loss)}"
    elif loss.numel() != 1:
        problem = f"has the shape {list(loss.shape)}"
    elif torch.is_grad_enabled() and not loss.requires_grad:
        problem = "depends on no weight that is trained"
    else:
        return
    raise TrainingError(
        f"the loss of {qualified_name(type(trainer))} {problem}; expected a scalar tensor of the model's outputs"
    )


def require_auxiliary_losses(trainer: TrainerView, loss: object) -> None:
    """Raises `TrainingError` where a model adds to its own loss, and that of the trainer leaves it out."""
    model = auxiliary_losses.find_unused(engine.module for engine in trainer.trainable_engines.values())
    if model is not None and torch.is_grad_enabled():
        raise TrainingError(
            auxiliary_losses.dropped_loss_message(model, f"the loss of {qualified_name(type(trainer))}")
        )


def require_whole_attention(trainer: object, loss: object) -> None:
    """Raises `TrainingError` where processes share sequences, and the model attended to its own part only."""
    if not sequence_parallel.num_all_to_all:
        name = qualified_name(type(trainer))
        raise TrainingError(
            f"sequence_parallel_size: the loss of {name} came about without the rest of the sequence: "
            "its model attends by something else than transformers' attention functions; remove the key"
        )
