"""Compares the maximum length of samples with the positions that the model has."""

import re

from torch import nn

from arctic_training.errors.types import ModelError
from arctic_training.logging import logger

_POSITION_EMBEDDING = re.compile(r"(.*\.)?(?!\w*(relative|bias))(wpe|\w*pos\w*)")
"""Names of embeddings with a row for each position; those of distances have few rows for all of them."""


def check_positions(
    model: nn.Module, max_length: int | None, max_positions: int | None, *, key: str = "data.max_length"
) -> None:
    """Compares ``max_length``, in tokens, with the model's positions; ``max_positions`` is what its config says, and
    ``key`` the recipe's key of ``max_length``.

    Learned positions end somewhere, and a lookup beyond is an error in the middle of a run, on a GPU without a name.
    Computed ones go on, into what the model has never seen: a warning. Raises `ModelError` for learned positions that
    are too few.
    """
    learned = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITION_EMBEDDING.fullmatch(name)
    ]
    if max_length is None:
        return
    # some models keep a few rows more than there are positions
    last = min([*learned, *([max_positions] if learned and max_positions else [])], default=max_length)
    if max_length > last:
        raise ModelError(f"{key}: {max_length} tokens, and the model has learned {last} positions; lower it")
    if max_positions and max_length > max_positions:
        logger.warning(f"{key}: {max_length} tokens are more than the {max_positions} that the model has seen at once")
