"""Compares the estimated memory of weights, gradients and optimizer with that of the GPU."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from arctic_training.component import TrainerView
from arctic_training.errors.types import ModelError
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.memory_estimate import USABLE_SHARE, layout_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_gpu_memory(
    model: "PreTrainedModel", trainer: TrainerView, section: HFModelConfig, deepspeed: Mapping[str, Any]
) -> None:
    """Compares what a GPU has to hold of ``model``, which has no weights yet, with its memory; see `layout_of`.

    Skipped for quantized weights, and where a ``bf16`` block keeps less in fp32 than the estimate. Raises `ModelError`.
    """
    if trainer.device.type != "cuda" or len(deepspeed.get("bf16", {})) > 1:
        return
    if hasattr(model.config, "quantization_config"):
        return
    memory = torch.cuda.mem_get_info(trainer.device)[1]
    layout = layout_of(trainer, section, deepspeed, least=True)
    if (needed := layout.state(model)) <= memory:
        return
    alternatives = {
        "optimizer.type: lion": replace(layout, moments=min(layout.moments, 1)),
        "optimizer.type: adafactor": replace(layout, moments=0, stage=0),
        "deepspeed.zero_optimization.offload_optimizer: {device: cpu} with optimizer.type: cpu_adam": replace(
            layout, offloads=True, stage=max(layout.stage, 2)
        ),
        "model.peft_config for an adapter": replace(layout, frozen=True),
    }
    usable = USABLE_SHARE * memory
    fitting = [words for words, one in alternatives.items() if layout != one and one.state(model) <= usable]
    worlds = (2**n * layout.world for n in range(1, 11))
    larger = (world for world in worlds if replace(layout, stage=3, world=world).state(model) <= usable)
    fitting += [f"{world} processes with deepspeed.zero_optimization.stage: 3" for world in larger][:1]
    hint = f"what would fit: {'; '.join(fitting)}" if fitting else "nothing that is known here would fit"
    raise ModelError(
        f"weights, gradients and optimizer take {needed / 2**30:.1f} GiB by an estimate, and the GPU has "
        f"{memory / 2**30:.1f}; {hint}"
    )
