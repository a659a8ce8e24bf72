"""The data of projects/vae, and the trivial model that its figures are compared with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECTS = Path(__file__).parents[2] / "projects"


def load(recipe: str, source: str, split: str, **keys: Any) -> dict[str, torch.Tensor]:
    get_config(PROJECTS / recipe)
    cls: Any = lookup("data_source", source)
    tensors: dict[str, torch.Tensor] = cls(None, cls.config_type.model_validate({"type": source, **keys}))(split)
    return tensors


def independent_pixels(train: torch.Tensor, held_out: torch.Tensor) -> float:
    """Returns the mean -log p of rows, in nats, whose pixels are drawn one by one."""
    shares = (train.double().sum(0) + 1) / (len(train) + 2)
    return -torch.distributions.Bernoulli(shares).log_prob(held_out.double()).flatten(1).sum(1).mean().item()


def test_digits_of_scikit_learn() -> None:
    train, held_out = (load("vae/recipe.yaml", "binary_digits", split)["rows"] for split in ("train", "eval"))
    assert (train.shape, held_out.shape) == ((1257, 64), (540, 64))
    assert set(train.unique().tolist()) == {0, 1}
    assert independent_pixels(train, held_out) == pytest.approx(25.15, abs=0.01)
