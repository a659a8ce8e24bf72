"""Losses of policies on completions that they sampled, and the advantages of completions over others."""

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["none", "mean", "leave_one_out"]


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """Returns the advantage of each completion over its group: ``[groups, completions]`` as ``rewards``, floating.

    That is the reward minus the group's mean. ``scale`` divides by the standard deviation of the group (Shao et al.
    2024, arXiv 2402.03300, section 4.1.2), which weighs groups that are nearly all right or wrong more than others (Liu
    et al. 2025, arXiv 2503.20783). A group with equal rewards has advantages of exactly 0. A reward of NaN is none: the
    group is compared without it, and its advantage is 0.
    """
    advantages = rewards - rewards.nanmean(1, keepdim=True)
    if scale:
        # the population's deviation, not an estimate from a sample; below the bound it is rounding
        deviation = advantages.square().nanmean(1, keepdim=True).sqrt()
        advantages = advantages / deviation.clamp(min=1e-6)
    highest, lowest = rewards.nan_to_num(nan=-torch.inf).amax(1), rewards.nan_to_num(nan=torch.inf).amin(1)
    return advantages.masked_fill(rewards.isnan() | (highest <= lowest)[:, None], 0)


def leave_one_out_means(values: Tensor) -> Tensor:
    """Returns the mean of the other values of its group for each value: ``[groups, completions]``, floating.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; Ahmadian et al. 2024 (arXiv 2402.14740),
    equation 8. Values of NaN are left out. A value without others has a mean of its own, so that its advantage is 0.
    """
    others = (~values.isnan()).sum(1, keepdim=True) - 1
    means = (values.nansum(1, keepdim=True) - values) / others
    return torch.where(others > 0, means, values)


def clipped_surrogate_losses(log_ratios: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Returns -min(r A, clip(r, 1 - low, 1 + high) A) of every token: ``[tokens]``, where r = exp(``log_ratios``).

    Schulman et al. 2017 (arXiv 1707.06347), equation 7; two bounds as in Yu et al. 2025 (arXiv 2503.14476), equation
    10. Both tensors are ``[tokens]`` of one floating dtype; ``log_ratios`` are log-probs minus those of the policy that
    sampled the tokens, in nats.
    """
    ratio = log_ratios.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def truncated_importance_losses(log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, *, high: float) -> Tensor:
    """Returns -min(r, 1 + high) A log p of every token, ``[tokens]``, without a gradient through the weight: CISPO.

    MiniMax 2025 (arXiv 2506.13585), equations 4 and 5, without a lower bound as there. Unlike a clipped surrogate, no
    token loses its gradient. All tensors are ``[tokens]`` of one floating dtype, log-probs in nats; r is
    exp(``log_ratios``).
    """
    return -log_ratios.detach().exp().clamp(max=1 + high) * advantages * log_probs


def sequence_log_ratios(log_ratios: Tensor, lengths: Tensor) -> Tensor:
    """Returns for every token the mean log-ratio of its completion, ``[tokens]``, fp32.

    Zheng et al. 2025 (arXiv 2507.18071, GSPO), equation 7. ``log_ratios`` is ``[tokens]``, completion by completion;
    ``lengths`` is ``[completions]`` (int64).
    """
    means = segment_sums(log_ratios, lengths) / lengths
    return means.repeat_interleave(lengths, output_size=len(log_ratios))


def kl_estimates(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Returns estimates of KL(policy | reference) in nats, q/p - log(q/p) - 1 at every token: ``[tokens]``, never < 0.

    ``log_probs`` and ``ref_log_probs`` are ``[tokens]`` in nats, of one floating dtype. The estimate's mean over tokens
    that the policy samples is the divergence (Schulman 2020, "Approximating KL divergence", k3), as in Shao
    et al. 2024 (arXiv 2402.03300), equation 4.
    """
    log_ratio = ref_log_probs - log_probs
    return log_ratio.exp() - log_ratio - 1


def segment_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Returns the sum over the tokens of each segment: ``[segments]``, fp32.

    ``values`` is ``[sum(lengths)]``, segment by segment; ``lengths`` is ``[segments]`` (int64).
    """
    # segment by segment, in order: unlike index_add, the same to the last bit on every run, on a GPU too
    return torch.segment_reduce(values.float(), "sum", lengths=lengths, unsafe=True)
