"""Batches as code for ArcticTraining 0.8 passes them to a model."""

import torch

from arctic_training.data.batching.loader import Batch
from arctic_training.trainer import window


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch with its tensors on ``device``, without the divisor of summed losses: what is called with all
    keys of a batch of ArcticTraining 0.8 may not take it."""
    moved = window.to_device(batch, device)
    return {name: value for name, value in moved.items() if name != "num_items_in_batch"}
