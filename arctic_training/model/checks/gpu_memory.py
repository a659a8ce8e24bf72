"""Decides by the memory of the GPU whether layers are computed again for the gradient."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from arctic_training.component import TrainerView
from arctic_training.distributed import process_group
from arctic_training.logging import logger
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.kept_activations import Recomputation
from arctic_training.model.memory_estimate import USABLE_SHARE, Batch, footprint, layout_of, tokens_at_once


def needs_checkpointing(
    model: nn.Module,
    trainer: TrainerView,
    section: HFModelConfig,
    deepspeed: Mapping[str, Any],
    recomputation: Recomputation,
) -> bool:
    """Returns whether the activations of ``model`` would not fit in the memory of the GPU, and warns where they would
    not: see `layout_of`. False without a ``max_length`` of the data."""
    recipe = trainer.config
    max_length = getattr(recipe.data, "max_length", None)
    if not max_length:
        return False
    layout = layout_of(trainer, section, deepspeed, process_group.world_size())
    needed = footprint(model).estimate(layout, Batch(tokens_at_once(recipe, max_length), recomputation))
    usable = int(USABLE_SHARE * torch.cuda.mem_get_info(trainer.device)[1])
    if needed.total <= usable:
        return False
    logger.warning(
        f"model.activation_checkpointing: on, since by an estimate {needed.total / 2**30:.1f} GiB would be needed, "
        f"of {usable / 2**30:.1f}; write true or false to decide"
    )
    return True
