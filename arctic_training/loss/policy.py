"""Losses on answers that a policy gave itself, each worth something beside the others to the same prompt: GRPO."""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """How much better each answer is than its group: the reward less the group's mean, ``[groups, answers]``.

    ``scale`` divides by the standard deviation of the group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), which
    weighs groups whose answers are nearly all right or wrong more than others (Liu et al. 2025, arXiv 2503.20783). A
    group with equal rewards has advantages of exactly 0.
    """
    found = rewards - rewards.mean(1, keepdim=True)
    if scale:
        # of all answers there are, not an estimate from a sample of them; below the bound it is rounding
        found = found / rewards.std(1, correction=0, keepdim=True).clamp(min=1e-6)
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return found.masked_fill(equal, 0)


def clipped_surrogate_losses(log_probs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) of every token, ``[tokens]``, r being its probability over the old one.

    Schulman et al. 2017 (arXiv 1707.06347), equation 7; two bounds as in Yu et al. 2025 (arXiv 2503.14476), equation
    10. All arguments are ``[tokens]``; ``advantages`` are those of the tokens' answers.
    """
    ratio = (log_probs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def kl_estimates(log_probs: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(policy | reference) at every token, ``[tokens]``: q/p - log(q/p) - 1, never negative.

    Its mean over what the policy draws is the divergence (Schulman 2020, "Approximating KL divergence", k3), as in Shao
    et al. 2024 (arXiv 2402.03300), equation 4.
    """
    ratio = reference - log_probs
    return ratio.exp() - ratio - 1


def segment_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """The sums over the tokens of each answer, ``[answers]``: ``values`` is ``[sum(lengths)]``, answer by answer."""
    # segment by segment, in order: the same to the last bit on every run, on a GPU too
    return torch.segment_reduce(values.float(), "sum", lengths=lengths, unsafe=True)
