"""Compares the estimated memory of a run with that of the GPU."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from arctic_training.component import TrainerView
from arctic_training.engine.tensor_parallel import count_divisible
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.kept_activations import Recomputation
from arctic_training.model.memory_alternatives import fitting
from arctic_training.model.memory_estimate import (
    USABLE_SHARE,
    Batch,
    Footprint,
    count_parameters,
    footprint,
    layout_of,
    tokens_at_once,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_gpu_memory(
    model: "PreTrainedModel",
    trainer: TrainerView,
    section: HFModelConfig,
    deepspeed: Mapping[str, Any],
    batch: Batch,
) -> None:
    """Compares what a GPU has to hold of ``model``, which has no weights yet, with its memory; see `layout_of`.

    Rows that are packed count as full; of others, which may be shorter, only weights, gradients and optimizer count.
    ``batch``: how it may be computed; its tokens are those of the recipe. Skipped for quantized weights, and where a
    ``bf16`` block keeps less in fp32 than the estimate. Raises `ModelError`.
    """
    if trainer.device.type != "cuda" or len(deepspeed.get("bf16", {})) > 1:
        return
    if hasattr(model.config, "quantization_config"):
        return
    memory = torch.cuda.mem_get_info(trainer.device)[1]
    layout, recipe = layout_of(trainer, section, deepspeed, least=True), trainer.config
    max_length = getattr(recipe.data, "max_length", None)
    size = Footprint(*count_parameters(model), None, divisible=count_divisible(model))
    batch = replace(batch, tokens=0)
    if trainer.packs_samples and max_length and not layout.frozen:
        size, batch = footprint(model), replace(batch, tokens=tokens_at_once(recipe, max_length))
    if (needed := size.estimate(layout, batch).total) <= memory:
        return
    changes = [one.change for one in fitting(size, USABLE_SHARE * memory, layout, batch, recipe.micro_batch_size)]
    hint = f"what would fit: {'; '.join(changes)}" if changes else "nothing that is known here would fit"
    what = "weights, gradients, optimizer and a micro-batch" if batch.tokens else "weights, gradients and optimizer"
    raise ModelError(
        f"{what} take {needed / 2**30:.1f} GiB by an estimate, and the GPU has {memory / 2**30:.1f}; {hint}"
    )


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
    layout = layout_of(trainer, section, deepspeed)
    needed = footprint(model).estimate(layout, Batch(tokens_at_once(recipe, max_length), recomputation))
    usable = int(USABLE_SHARE * torch.cuda.mem_get_info(trainer.device)[1])
    if needed.total <= usable:
        return False
    logger.warning(
        f"model.activation_checkpointing: on, since by an estimate {needed.total / 2**30:.1f} GiB would be needed, "
        f"of {usable / 2**30:.1f}; write true or false to decide"
    )
    return True
