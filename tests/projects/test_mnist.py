"""The data of projects/mnist, the trivial model that its figures are compared with, and the measures of digits."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arctic_training.registry import lookup
from tests.projects.test_vae import independent_pixels, load


def test_digits_of_mnist() -> None:
    train, held_out = (load("mnist/classifier.yaml", "mnist", split, binary=True) for split in ("train", "eval"))
    assert (train["rows"].shape, held_out["rows"].shape) == ((3500, 1, 28, 28), (1500, 1, 28, 28))
    assert train["labels"].bincount().tolist() == [350] * 10
    assert independent_pixels(train["rows"], held_out["rows"]) == pytest.approx(206.9, abs=0.1)


def test_generated_digits_are_measured_by_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a trainer that draws the wanted digit with guidance, and the next one without: a row of pixels for each."""
    pytest.importorskip("torchmetrics")
    held_out = load("mnist/diffusion.yaml", "mnist", "eval", signed=True)["rows"]
    assert held_out.min() == -1 and held_out.max() == 1
    kind: Any = lookup("evaluator", "mnist_quality")
    module = sys.modules[kind.__module__]
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False), nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        classifier[1].weight.zero_()
        for digit in range(10):
            classifier[1].weight[digit, 28 * digit : 28 * (digit + 1)] = 1  # the brightness of the row of this number
        classifier[2].weight.copy_(torch.eye(10))
    monkeypatch.setattr(module, "load_network", lambda run, device: classifier)

    def sample(count: int, labels: Tensor, *, guidance_scale: float | None) -> Tensor:
        pictures = torch.full([count, 1, 28, 28], -1.0)
        shown = labels if guidance_scale is None else (labels + 1) % 10
        pictures[torch.arange(count), 0, shown] = torch.rand(count, 28, generator=torch.Generator().manual_seed(0))
        return pictures

    loader = SimpleNamespace(dataset={"rows": held_out})
    trainer = SimpleNamespace(sample=sample, device=torch.device("cpu"), eval_loaders={"eval": loader})
    evaluator = kind(kind.config_type(type="mnist_quality", classifier="run", count=200))
    with torch.no_grad():
        values = evaluator(trainer)
    assert values["recognised/guided"] == 1 and values["recognised/unguided"] == 0
    drawn = sample(200, torch.arange(200) % 10, guidance_scale=None)
    one, other = (((rows + 1) / 2)[:, 0, :10].sum(2).double().numpy() for rows in (held_out, drawn))
    first, second = np.cov(one.T), np.cov(other.T)
    expected = np.square(one.mean(0) - other.mean(0)).sum()
    expected += np.trace(first + second) - 2 * np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    assert values["frechet_distance/guided"] == pytest.approx(expected, rel=1e-3)
