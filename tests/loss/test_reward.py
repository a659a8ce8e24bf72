"""The loss of a reward model."""

import torch

from arctic_training.loss.reward import reward_losses


def test_it_is_the_loss_of_bradley_and_terry() -> None:
    chosen, rejected = torch.tensor([0.5, -1.0, 3.0]), torch.tensor([0.1, 2.0, 3.0])
    probability = chosen.exp() / (chosen.exp() + rejected.exp())
    assert torch.allclose(reward_losses(chosen, rejected), -probability.log(), atol=1e-6)


def test_a_margin_and_the_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margin = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    theirs = torch.log1p((-(chosen - rejected - margin)).exp()) + 0.1 * (chosen + rejected) ** 2
    ours = reward_losses(chosen, rejected, margin=margin, center_coefficient=0.1)
    assert torch.allclose(ours.double(), theirs, atol=1e-6)
