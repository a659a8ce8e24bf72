"""The measures of generated digits: against scipy and loops, and what they say of data that are known."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "diffusion"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "digit_images").__module__]


def test_the_frechet_distance_is_that_of_two_gaussians(project: ModuleType) -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6)), generator.normal(size=(40, 6)) + 0.5
    first, second = np.cov(one.T), np.cov(other.T)
    expected = np.square(one.mean(0) - other.mean(0)).sum()
    expected += np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert project.frechet_distance(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected, abs=1e-8)
    assert project.frechet_distance(torch.tensor(one), torch.tensor(one)) == pytest.approx(0, abs=1e-8)


def test_coverage_and_recall_are_counted(project: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(n, 3, generator=generator).double() for n in (30, 40))

    def radius(points: torch.Tensor, n: int, k: int) -> float:
        return sorted((points[n] - other).norm().item() for m, other in enumerate(points) if m != n)[k - 1]

    covered = [any((y - x).norm() <= radius(real, n, 5) for y in generated) for n, x in enumerate(real)]
    assert project.coverage(real, generated) == pytest.approx(np.mean(covered))
    recalled = [any((y - x).norm() <= radius(generated, m, 3) for m, y in enumerate(generated)) for x in real]
    assert project.recall(real, generated) == pytest.approx(np.mean(recalled))


def test_the_references_of_the_figures(project: ModuleType) -> None:
    """The training set, a Gaussian of its mean and covariance within the range of pixels, and noise."""
    train, _ = project.digits()
    flat = train["rows"].flatten(1).double()
    values, vectors = torch.linalg.eigh(flat.T.cov())
    noise = torch.randn(1257, 64, generator=torch.Generator().manual_seed(0)).double()
    gaussian = (flat.mean(0) + (noise * values.clamp(min=0).sqrt()) @ vectors.T).clamp(-1, 1)
    assert project.classifier().accuracy > 0.97
    best, simple, worst = (project.measure(rows.reshape(-1, 8, 8)) for rows in (flat, gaussian, noise))
    assert best["frechet_distance"] < 1 and best["coverage"] > 0.97 and best["recall"] > 0.85
    assert 3 < simple["frechet_distance"] < 6 and simple["coverage"] < 0.6
    assert worst["frechet_distance"] > 50 and worst["coverage"] < 0.05
