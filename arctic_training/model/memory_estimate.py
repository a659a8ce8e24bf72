"""Estimates how much memory training a model takes, before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from arctic_training.component import TrainerView
from arctic_training.distributed import process_group
from arctic_training.model.huggingface_config import HFModelConfig

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

USABLE_SHARE = 0.85
"""Share of a GPU's memory that an estimate may fill; the rest is for what no estimate knows."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device."""

    state: int
    """Weights, gradients and optimizer."""
    activations: int
    """What the layers keep for the gradient of one micro-batch, without activation checkpointing."""

    @property
    def total(self) -> int:
        """The sum of both."""
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
        """Returns the bytes of ``model`` on each device: weights, gradients and optimizer."""
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad and not self.frozen) for p in model.parameters()]
        total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
        width, mixed = BYTES[self.dtype], self.dtype != "fp32"
        weights = 0 if self.offloads_weights else total * width // (self.world if self.stage == 3 else 1)
        # in 16 bits they are added up in fp32, where the optimizer is
        gradients = trained * (width + 4 * (mixed and not self.offloads)) // (self.world if self.stage >= 2 else 1)
        optimizer = 0 if self.offloads else trained * 4 * (self.moments + mixed)
        return weights + gradients + optimizer // (self.world if self.stage >= 1 else 1)


def layout_of(
    trainer: TrainerView, section: HFModelConfig, deepspeed: Mapping[str, Any], *, least: bool = False
) -> Layout:
    """Returns how the run holds the model of ``section``, by the config that ``deepspeed`` gets.

    An optimizer whose state is unknown counts as Adam, or with ``least`` as one without state.
    """
    zero = deepspeed["zero_optimization"]
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


def estimate(model: nn.Module, *, tokens: int, layout: Layout) -> Estimate | None:
    """Returns the estimate for micro-batches of ``tokens``, or None for a model whose config has no width.

    A layer with attention that keeps no scores and a gated MLP keeps, for every token, about twelve vectors of the
    model's width and five of the MLP's. After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, whose count
    of 34 bytes is for an MLP of four times the width, 16 bits and dropout.
    """
    config: object = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not width or not layers:
        return None
    inner = getattr(text, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    return Estimate(layout.state(model), layers * tokens * BYTES[layout.dtype] * (12 * width + 5 * inner))
