"""Losses of GRPO: completions that the policy sampled, each compared with the others of its prompt."""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """Returns the advantage of each completion over its group: ``[groups, completions]`` as ``rewards``, floating.

    That is the reward minus the group's mean. ``scale`` divides by the standard deviation of the group (Shao et al.
    2024, arXiv 2402.03300, section 4.1.2), which weighs groups that are nearly all right or wrong more than others (Liu
    et al. 2025, arXiv 2503.20783). A group with equal rewards has advantages of exactly 0.
    """
    advantages = rewards - rewards.mean(1, keepdim=True)
    if scale:
        # the population's deviation, not an estimate from a sample; below the bound it is rounding
        advantages = advantages / rewards.std(1, correction=0, keepdim=True).clamp(min=1e-6)
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return advantages.masked_fill(equal, 0)


def clipped_surrogate_losses(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, low: float, high: float
) -> Tensor:
    """Returns -min(r A, clip(r, 1 - low, 1 + high) A) of every token: ``[tokens]``, where r = exp(new - old log-prob).

    Schulman et al. 2017 (arXiv 1707.06347), equation 7; two bounds as in Yu et al. 2025 (arXiv 2503.14476), equation
    10. All tensors are ``[tokens]`` of one floating dtype, log-probs in nats; ``advantages`` holds for each token that
    of its completion.
    """
    ratio = (log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


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
    # segment by segment, in order: the same to the last bit on every run, on a GPU too
    return torch.segment_reduce(values.float(), "sum", lengths=lengths, unsafe=True)
