"""The losses of a classifier and of a regression, and the counts from which the F1 of a classifier is computed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from arctic_training.loss.targets import IGNORE_INDEX


def classification_loss(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Returns the sum of the losses of all labels: a float32 scalar in nats, with a gradient.

    ``logits`` are ``[..., classes]``. ``labels`` of an integer dtype are ``[...]``, one class each, and the losses are
    cross-entropies; those of a float dtype are ``[..., classes]``, 0 or 1 each, and the losses are binary
    cross-entropies of every class. -100 marks a label that does not count. ``class_weights`` ``[classes]`` multiply the
    losses, and ``label_smoothing`` is the share of a label that is spread evenly, over the classes or over 0 and 1.
    """
    logits = logits.float()
    if not labels.is_floating_point():
        return F.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten().long(),
            class_weights,
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    counts = labels != IGNORE_INDEX
    smoothed = labels.clamp(min=0) * (1 - label_smoothing) + label_smoothing / 2
    weight = counts.float() if class_weights is None else counts * class_weights
    return F.binary_cross_entropy_with_logits(logits, smoothed, weight, reduction="sum")


def regression_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the sum of the squared errors of ``outputs`` ``[N, 1]``: a float32 scalar, with a gradient.

    ``labels`` are float32 ``[N]``; -100 marks one that does not count.
    """
    return ((outputs.float().squeeze(-1) - labels) * (labels != IGNORE_INDEX)).square().sum()


@torch.no_grad()
def count_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns how many labels are predicted right, int64 ``[]``; see `classification_loss` for the arguments.

    The class of the largest logit is predicted, or every class whose logit is positive.
    """
    predicted = logits > 0 if labels.is_floating_point() else logits.argmax(-1)
    return ((predicted == labels) & (labels != IGNORE_INDEX)).sum()


@torch.no_grad()
def class_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns of each class how many labels are predicted right, are predicted and are true: int64 ``[3, classes]``.

    See `count_right`.
    """
    counts = labels != IGNORE_INDEX
    if labels.is_floating_point():
        predicted, true = (logits > 0) & counts, (labels > 0) & counts
    else:
        classes = torch.arange(logits.shape[-1], device=logits.device)
        predicted = (logits.argmax(-1)[..., None] == classes) & counts[..., None]
        true = (labels[..., None] == classes) & counts[..., None]
    both = torch.stack([predicted & true, predicted, true])
    return both.flatten(1, -2).sum(1)


def macro_f1(counts: Sequence[Sequence[float]]) -> float:
    """Returns the mean F1 of the classes that are true or predicted somewhere, by `class_counts`, or any multiple."""
    right, predicted, true = counts
    scores = [2 * r / (p + t) for r, p, t in zip(right, predicted, true, strict=True) if p + t > 0]
    return sum(scores) / len(scores) if scores else 0.0
