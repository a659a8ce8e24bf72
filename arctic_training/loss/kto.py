"""Losses on single completions that were liked or not: KTO and its variants."""

from typing import Literal

import torch
from torch import Tensor

KTOLoss = Literal["kto", "apo_zero_unpaired"]


def kto_losses(
    log_ratios: Tensor,
    is_liked: Tensor,
    kl: Tensor | float = 0.0,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Returns the loss of every completion: ``[completions]`` as ``log_ratios``, floating.

    ``log_ratios`` ``[completions]`` are the log-probabilities under the policy minus those under the reference, in
    nats; ``is_liked`` is ``[completions]``, bool; ``kl``, a scalar in nats without a gradient, is
    `kto_reference_point`. With z the ``kl`` and w the weight of its kind, the loss of a liked completion is
    w (1 - sigmoid(beta (r - z))), and of another one w (1 - sigmoid(beta (z - r))): Ethayarajh et al. 2024
    (arXiv 2402.01306), equations 7 and 8. With z = 0 that is APO-zero for unpaired data, D'Oosterlinck et al. 2024
    (arXiv 2408.06266), equation 7.
    """
    weights = torch.full_like(log_ratios, undesirable_weight).masked_fill(is_liked, desirable_weight)
    margins = beta * (log_ratios - kl)
    return weights * torch.sigmoid(torch.where(is_liked, -margins, margins))


def kto_reference_point(total: Tensor, count: Tensor) -> Tensor:
    """Returns the estimate of KL(policy | reference) in nats, a scalar that is never negative.

    ``total``, a scalar, is the sum of the log-ratios of ``count`` (a scalar) completions that were generated for other
    prompts: arXiv 2402.01306, section 4.1. It is 0 where there are none.
    """
    return (total / count.clamp(min=1)).clamp(min=0)
