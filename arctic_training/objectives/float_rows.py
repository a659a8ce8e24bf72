"""Checks of the column ``rows`` for trainers of densities."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from arctic_training.errors.types import DataError


def require_float_rows(tables: Mapping[str, Mapping[str, Tensor]], *, width: int | None, width_key: str) -> torch.Size:
    """Returns the shape of a row of the training data, the first of ``tables``, which are those of
    `TensorTrainer.tables`: columns of tensors ``[rows, ...]``.

    Raises `DataError` where a column ``rows`` has no floats, and for rows of another number of floats than ``width``,
    which the recipe states under ``width_key``; None: the model does not say it.
    """
    shapes = list[torch.Size]()
    for key, columns in tables.items():
        rows = columns["rows"]
        if not rows.is_floating_point():
            raise DataError(f"{key}: rows are {rows.dtype}; a density needs floats, such as pixels from 0 to 1")
        shape = rows.shape[1:]
        if width is not None and prod(shape) != width:
            raise DataError(
                f"{key}: a row has {prod(shape)} numbers, and {width_key} is {width}; give one of the other"
            )
        shapes.append(shape)
    return shapes[0]
