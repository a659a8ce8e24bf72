"""Losses of KTO: against TRL's lines, against numbers worked out apart from them, and what must always hold."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from arctic_training.loss.kto import KTOLoss, kto_losses, kto_reference_point


def trl_losses(loss_type: KTOLoss, log_ratios: Any, is_liked: Any, kl: Any, beta: float, weights: Any) -> torch.Tensor:
    """The lines of `trl.KTOTrainer`, in the order of the completions."""
    chosen, rejected = log_ratios[is_liked], log_ratios[~is_liked]
    if loss_type == "kto":
        chosen_losses = 1 - F.sigmoid(beta * (chosen - kl))
        rejected_losses = 1 - F.sigmoid(beta * (kl - rejected))
    else:
        chosen_losses = 1 - F.sigmoid(beta * chosen)
        rejected_losses = F.sigmoid(beta * rejected)
    losses = torch.empty_like(log_ratios)
    losses[is_liked], losses[~is_liked] = weights[0] * chosen_losses, weights[1] * rejected_losses
    return losses


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_losses_and_gradients_are_trls(loss_type: KTOLoss) -> None:
    draw = torch.Generator().manual_seed(0)
    log_ratios = (30 * torch.randn(64, generator=draw, dtype=torch.float64)).requires_grad_()
    is_liked = torch.rand(64, generator=draw) < 0.4
    kl = torch.tensor(1.7, dtype=torch.float64) if loss_type == "kto" else torch.zeros((), dtype=torch.float64)
    losses = kto_losses(log_ratios, is_liked, kl, beta=0.3, desirable_weight=1.3, undesirable_weight=0.7)
    expected = trl_losses(loss_type, log_ratios, is_liked, kl, 0.3, (1.3, 0.7))
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratios)
    (by_trl,) = torch.autograd.grad(expected.sum(), log_ratios)
    torch.testing.assert_close(gradient, by_trl, rtol=1e-10, atol=1e-12)


def test_worked_out() -> None:
    losses = kto_losses(torch.tensor([3.0, 3.0]), torch.tensor([True, False]), 1.0, beta=0.5)
    assert losses.tolist() == pytest.approx([1 / (1 + math.e), 1 / (1 + math.exp(-1))], abs=1e-7)


def test_the_estimate_is_a_mean_that_is_never_negative() -> None:
    assert kto_reference_point(torch.tensor(6.0), torch.tensor(4.0)).item() == 1.5
    assert kto_reference_point(torch.tensor(-6.0), torch.tensor(4.0)).item() == 0
    assert kto_reference_point(torch.tensor(0.0), torch.tensor(0.0)).item() == 0
