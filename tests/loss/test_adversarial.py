"""Adversarial losses and penalties, against numbers worked out by hand and functions whose slope is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from arctic_training.loss.adversarial import (
    AdversarialLoss,
    discriminator_losses,
    generator_losses,
    gradient_penalties,
    r1_penalties,
)

LOSSES: list[AdversarialLoss] = ["non_saturating", "hinge", "wasserstein", "least_squares"]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("kind", "smoothing", "judged", "generated"),
    [
        ("non_saturating", 0.0, softplus(-2) + softplus(0.5), softplus(-0.5)),
        ("non_saturating", 0.1, 0.9 * softplus(-2) + 0.1 * softplus(2) + softplus(0.5), softplus(-0.5)),
        ("least_squares", 0.0, (1 + 0.25) / 2, 0.125),
        ("least_squares", 0.1, (1.1**2 + 0.25) / 2, 0.125),
        ("hinge", 0.0, 1.5, -0.5),
        ("wasserstein", 0.0, -1.5, -0.5),
    ],
)
def test_worked_out(kind: AdversarialLoss, smoothing: float, judged: float, generated: float) -> None:
    """Scores of 2 for the real row and 1/2 for the generated one."""
    real, fake = torch.tensor([[2.0]]), torch.tensor([[0.5]])
    assert discriminator_losses(kind, real, fake, smoothing).tolist() == pytest.approx([judged])
    assert generator_losses(kind, fake).tolist() == pytest.approx([generated])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_those_of_finite_differences(kind: AdversarialLoss, smoothing: float) -> None:
    """Of scores on both sides of the kinks of hinge, and far out."""
    real = torch.tensor([[-30.0], [0.2], [1.5], [30.0]], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([30.0, -0.2, -1.5, -30.0], dtype=torch.float64, requires_grad=True)
    judge = lambda real, fake: discriminator_losses(kind, real, fake, smoothing)  # noqa: E731
    assert torch.autograd.gradcheck(judge, (real, fake))
    assert torch.autograd.gradcheck(lambda fake: generator_losses(kind, fake), fake)


@given(st.sampled_from(LOSSES), st.lists(st.tuples(st.floats(-5, 0.9), st.floats(-0.9, 0.9)), min_size=1, max_size=5))
def test_the_two_pull_apart(kind: AdversarialLoss, scores: list[tuple[float, float]]) -> None:
    """Before it is sure, the discriminator raises real scores and lowers generated ones; the generator raises those."""
    real, fake = (torch.tensor(column, requires_grad=True) for column in zip(*scores, strict=True))
    discriminator_losses(kind, real, fake).sum().backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    if kind != "least_squares":
        assert (fake.grad > 0).all()
    fake.grad = None
    generator_losses(kind, fake).sum().backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all()


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4), st.integers(1, 5))
def test_penalties_of_a_plane(slope: list[float], rows: int) -> None:
    weight = torch.tensor(slope, dtype=torch.float64)
    real, fake, mix = torch.randn(rows, len(slope)).double(), torch.randn(rows, len(slope)).double(), torch.rand(rows)
    length = weight.norm().item()
    score = lambda x: x @ weight + 3  # noqa: E731
    assert r1_penalties(score, real).tolist() == pytest.approx([length**2 / 2] * rows, abs=1e-5)
    expected = [(length - 1) ** 2] * rows
    assert gradient_penalties(score, real, fake, mix).tolist() == pytest.approx(expected, abs=1e-5)


def test_penalties_of_a_curve() -> None:
    """A score sum(x^2) / 2 has the slope x: R1 is |x|^2 / 2, and the point between decides the other."""
    score = lambda x: x.square().sum(-1) / 2  # noqa: E731
    real, fake = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    assert r1_penalties(score, real).tolist() == [12.5]
    for mix, expected in ((1.0, 16.0), (0.0, 1.0), (0.5, 2.25)):
        penalties = gradient_penalties(score, real, fake, torch.tensor([mix]))
        assert penalties.tolist() == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_penalties_train_the_discriminator(shape: tuple[int, ...]) -> None:
    """The second derivative is right, for rows of any shape, and it is finite where the judge is flat."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 5), nn.Tanh(), nn.Linear(5, 1)).double()
    real, fake, mix = torch.randn(4, *shape).double(), torch.randn(4, *shape).double(), torch.rand(4)
    weight = net[1].weight

    def both(w: torch.Tensor) -> torch.Tensor:
        score = lambda x: torch.func.functional_call(net, {"1.weight": w}, x)  # noqa: E731
        return r1_penalties(score, real).sum() + gradient_penalties(score, real, fake, mix).sum()

    assert torch.autograd.gradcheck(both, weight)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    (gradient_penalties(net, real, fake, mix).sum() + r1_penalties(net, real).sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_penalties_work_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert r1_penalties(lambda x: x.square().sum(-1), torch.ones(2, 2)).tolist() == [4.0, 4.0]
