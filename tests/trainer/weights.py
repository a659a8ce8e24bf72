"""Weights of a trainer: moved away from where they were, and compared."""

from typing import Any

import torch


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def moved(trainer: Any) -> Any:
    """A policy that is no longer its reference."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.module.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return trainer
