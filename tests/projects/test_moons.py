"""The two moons: their density and entropy, and that the points are scikit-learn's."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from scipy import stats
from sklearn.datasets import make_moons

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECTS = Path(__file__).parents[2] / "projects"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECTS / "energy" / "recipe.yaml")
    get_config(PROJECTS / "flow" / "recipe.yaml")  # both have the classes of one file
    return sys.modules[lookup("data_source", "moons").__module__]


def test_the_density_has_the_integral_1_and_the_known_entropy(project: ModuleType) -> None:
    _, log_p = project.truth()
    assert project.integral(log_p.exp()) == pytest.approx(1, abs=1e-9)
    assert project.entropy() == pytest.approx(1.008, abs=0.002)
    points = project.moons(50_000, seed=3)
    log_probs = project.log_density(points)
    assert -float(log_probs.mean()) == pytest.approx(project.entropy(), abs=4 * float(log_probs.std()) / 50_000**0.5)


def test_the_points_are_those_of_scikit_learn(project: ModuleType) -> None:
    """By the distributions of their projections."""
    ours = project.moons(20_000, seed=4).double()
    theirs = torch.from_numpy(make_moons(20_000, noise=project.SIGMA, random_state=0)[0])
    for turn in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -2.0]):
        direction = torch.tensor(turn, dtype=torch.float64)
        assert stats.ks_2samp((ours @ direction).numpy(), (theirs @ direction).numpy()).pvalue > 1e-3


def test_one_gaussian_is_as_far_as_its_closed_form_says(project: ModuleType) -> None:
    """The best Gaussian has the entropy of its covariance, 1.908 nats; as an energy too, which the grid normalizes."""
    points, log_p = project.truth()
    mean = torch.tensor([project.integral(log_p.exp() * one) for one in points.T], dtype=torch.float64)
    centered = points - mean
    covariance = torch.stack([(log_p.exp()[:, None] * centered * one[:, None]).sum(0) for one in centered.T])
    covariance = covariance * project.SPACING**2
    expected = math.log(2 * math.pi * math.e) + float(covariance.logdet()) / 2
    # by hand: the arcs have variances 1/2 and 1/2 - 4 / pi^2, and their middles are 1 and 4 / pi - 1/2 apart
    apart = 4 / math.pi - 0.5
    determinant = (0.75 + 0.01) * (0.5 - 4 / math.pi**2 + apart**2 / 4 + 0.01) - (apart / 4) ** 2
    assert expected == pytest.approx(math.log(2 * math.pi * math.e) + math.log(determinant) / 2, abs=1e-6)
    gaussian = torch.distributions.MultivariateNormal(mean, covariance)
    flow = SimpleNamespace(device="cpu", log_probs=gaussian.log_prob)
    energy = SimpleNamespace(device="cpu", energies=lambda rows: 7 - gaussian.log_prob(rows.double()))
    for trainer in (flow, energy):
        values = project.MoonsEvaluator(None)(trainer)
        assert values["nll"] == pytest.approx(expected, abs=1e-3)
        assert values["kl"] == pytest.approx(expected - project.entropy(), abs=1e-3)
