"""The ring of Gaussians: its measure, and that both recipes find all modes."""

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "ring"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "ring").__module__]


def test_the_measure_knows_the_true_distribution(project: ModuleType) -> None:
    metrics = project.measure(project.ring(100_000, seed=5))
    assert metrics["share_within_3_sigma"] == pytest.approx(1 - math.exp(-4.5), abs=0.002)  # of a Gaussian in the plane
    assert metrics["modes"] == 8
    assert metrics["smallest_mode"] == pytest.approx(0.989 / 8, abs=0.005)
    assert metrics["spread"] == pytest.approx(0.974, abs=0.005)


def test_the_measure_sees_what_is_missing(project: ModuleType) -> None:
    points = project.ring(20_000, seed=5)
    remaining = points[points[:, 0] > -1.9]  # one mode is cut off
    assert project.measure(remaining)["modes"] == 7
    assert project.measure(torch.randn(20_000, 2))["share_within_3_sigma"] < 0.15
    centers = project.CENTERS.repeat(100, 1)
    assert project.measure(centers)["spread"] == 0
