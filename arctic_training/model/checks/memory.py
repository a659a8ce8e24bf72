"""How much memory training a model takes, estimated before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from arctic_training.component import TrainerView
from arctic_training.distributed import process_group
from arctic_training.errors.types import ModelError

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

SHARE = 0.85
"""Of a GPU's memory; the rest is for what no estimate knows."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device."""

    state: int
    """Weights, gradients and optimizer."""
    activations: int
    """What the layers keep for the gradient of one micro-batch, without activation checkpointing."""

    @property
    def total(self) -> int:
        return self.state + self.activations


@dataclass(frozen=True)
class Layout:
    """How a run holds a weight, its gradient and what the optimizer keeps for it."""

    dtype: str
    stage: int = 0
    world: int = 1
    moments: int = 2
    """Values that the optimizer keeps for each weight, of four bytes each."""
    offloads: bool = False
    """The optimizer's part is in main memory."""
    offloads_weights: bool = False
    frozen: bool = False
    """Nothing takes gradients; what an adapter adds is too little to count."""

    def state(self, model: nn.Module) -> int:
        """Returns the bytes of ``model`` on each device, weights, gradients and optimizer."""
        counted = [(getattr(p, "ds_numel", p.numel()), p.requires_grad and not self.frozen) for p in model.parameters()]
        whole, trained = sum(count for count, _ in counted), sum(count for count, wanted in counted if wanted)
        size, mixed = BYTES[self.dtype], self.dtype != "fp32"
        weights = 0 if self.offloads_weights else whole * size // (self.world if self.stage == 3 else 1)
        # in 16 bits they are added up in fp32, where the optimizer is
        gradients = trained * (size + 4 * (mixed and not self.offloads)) // (self.world if self.stage >= 2 else 1)
        kept = 0 if self.offloads else trained * 4 * (self.moments + mixed)
        return weights + gradients + kept // (self.world if self.stage >= 1 else 1)


def layout_of(trainer: TrainerView, section: Any, told: Mapping[str, Any], *, least: bool = False) -> Layout:
    """How the run holds the model of ``section``, with ``told`` to DeepSpeed.

    An optimizer of which it is not known is taken for Adam, or for the ``least`` that there can be.
    """
    zero = told["zero_optimization"]
    devices = [zero.get(f"offload_{part}", {}).get("device", "none") for part in ("optimizer", "param")]
    moments = getattr(getattr(trainer, "optimizer_section", None), "moments", None)
    return Layout(
        section.dtype,
        int(zero["stage"]),
        process_group.world_size(),
        (0 if least else 2) if moments is None else moments,
        offloads=devices[0] != "none",
        offloads_weights=devices[1] != "none",
        frozen=section.peft_config is not None or getattr(trainer, "frozen", False),
    )


def require_room(model: Any, trainer: TrainerView, section: Any, told: Mapping[str, Any]) -> None:
    """Raises `ModelError` when what a GPU has to hold of ``model``, a skeleton, is more than its memory.

    Nothing is said of weights that are quantized, nor where a ``bf16`` block keeps less in fp32 than is counted here.
    """
    if trainer.device.type != "cuda" or len(told.get("bf16", {})) > 1 or hasattr(model.config, "quantization_config"):
        return
    room, layout = torch.cuda.mem_get_info(trainer.device)[1], layout_of(trainer, section, told, least=True)
    if (needed := layout.state(model)) <= room:
        return
    others = {
        "optimizer.type: lion": replace(layout, moments=min(layout.moments, 1)),
        "optimizer.type: adafactor": replace(layout, moments=0, stage=0),
        "deepspeed.zero_optimization.offload_optimizer: {device: cpu} with optimizer.type: cpu_adam": replace(
            layout, offloads=True, stage=max(layout.stage, 2)
        ),
        "model.peft_config for an adapter": replace(layout, frozen=True),
    }
    counts = (2**n * layout.world for n in range(1, 11))
    fit = [words for words, one in others.items() if layout != one and one.state(model) <= SHARE * room]
    more = (n for n in counts if replace(layout, stage=3, world=n).state(model) <= SHARE * room)
    fit += [f"{n} processes with deepspeed.zero_optimization.stage: 3" for n in more][:1]
    mend = f"what would fit: {'; '.join(fit)}" if fit else "nothing that is known here would fit"
    raise ModelError(
        f"weights, gradients and optimizer take {needed / 2**30:.1f} GiB by an estimate, and the GPU has "
        f"{room / 2**30:.1f}; {mend}"
    )


def estimate(model: nn.Module, *, tokens: int, layout: Layout) -> Estimate | None:
    """For micro-batches of ``tokens``; None for a model without a width.

    A layer with attention that keeps no scores and a gated MLP keeps, for every token, about twelve vectors of the
    model's width and five of the MLP's. After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, whose count
    of 34 bytes is for an MLP of four times the width, 16 bits and dropout.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not width or not layers:
        return None
    inner = getattr(text, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    return Estimate(layout.state(model), layers * tokens * BYTES[layout.dtype] * (12 * width + 5 * inner))
