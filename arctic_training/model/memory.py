"""How much memory training a model takes, estimated before it starts."""

from dataclasses import dataclass
from typing import Any

from torch import nn

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


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


def estimate(
    model: nn.Module,
    *,
    tokens: int,
    dtype: str,
    stage: int = 0,
    world: int = 1,
    offloads: bool = False,
    frozen: bool = False,
) -> Estimate | None:
    """For micro-batches of ``tokens``, at a ZeRO ``stage`` over ``world`` processes; None for a model without a width.

    A ``frozen`` model takes no gradients: what an adapter adds to it is too little to count.

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
    size = BYTES[dtype]
    counted = [(getattr(p, "ds_numel", p.numel()), p.requires_grad and not frozen) for p in model.parameters()]
    whole, trained = sum(count for count, _ in counted), sum(count for count, wanted in counted if wanted)
    weights = whole * size // (world if stage == 3 else 1)
    gradients = trained * (4 if dtype == "fp32" else size + 4) // (world if stage >= 2 else 1)
    optimizer = 0 if offloads else trained * (8 if dtype == "fp32" else 12) // (world if stage >= 1 else 1)
    return Estimate(weights + gradients + optimizer, layers * tokens * size * (12 * width + 5 * inner))
