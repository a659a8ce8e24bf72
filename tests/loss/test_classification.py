"""The loss of a classifier, and its F1."""

import pytest
import torch
from torch.nn import functional as F

from arctic_training.loss.classification import class_counts, classification_loss, count_right, macro_f1


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_label(smoothing: float) -> None:
    logits, labels, weights = rand(2, 4, 3), torch.tensor([[0, 2, -100, 1], [1, -100, -100, 2]]), rand(3).exp()
    counted = labels != -100
    probabilities = F.one_hot(labels[counted], 3) * (1 - smoothing) + smoothing / 3
    expected = -(probabilities * logits[counted].log_softmax(-1) * weights).sum()
    ours = classification_loss(logits, labels, class_weights=weights, label_smoothing=smoothing)
    assert torch.allclose(ours, expected, rtol=1e-6)


def test_several_labels() -> None:
    logits, labels = rand(4, 3), torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [-100, -100, -100]]).float()
    expected = F.binary_cross_entropy_with_logits(logits[:3], labels[:3], reduction="sum")
    assert torch.allclose(classification_loss(logits, labels), expected)
    smoothed = classification_loss(logits, labels, label_smoothing=0.2)
    expected = F.binary_cross_entropy_with_logits(logits[:3], labels[:3] * 0.8 + 0.1, reduction="sum")
    assert torch.allclose(smoothed, expected)


def test_nothing_to_learn_from_is_a_loss_of_zero_with_a_gradient() -> None:
    logits = rand(2, 3).requires_grad_()
    for labels in (torch.tensor([-100, -100]), torch.full((2, 3), -100.0)):
        loss = classification_loss(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and not gradient.any()


def test_the_f1_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, -100])
    logits = F.one_hot(torch.tensor([0, 1, 1, 1, 0, 2]), 4).float()  # the last class is nowhere
    assert count_right(logits, labels) == 3
    counts = class_counts(logits, labels)
    # class 0: one of two, two predicted; class 1: both of two, three predicted; class 2: none of one
    assert macro_f1(counts.tolist()) == pytest.approx((2 * 1 / 4 + 2 * 2 / 5 + 0) / 3)
    assert macro_f1((counts / 7).tolist()) == pytest.approx(macro_f1(counts.tolist()))
    several = torch.tensor([[1, 0], [1, 1], [-100, -100]]).float()
    logits = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    assert count_right(logits, several) == 2
    assert class_counts(logits, several).tolist() == [[1, 1], [1, 2], [2, 1]]
