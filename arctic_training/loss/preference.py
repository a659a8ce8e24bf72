"""Losses on pairs of completions of one prompt, of which the first is preferred: DPO and its variants."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from arctic_training.loss.policy import segment_sums

PreferenceLoss = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "simpo",
    "cpo",
    "orpo",
]

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

_DISCOPOP_TAU = 0.05
"""Temperature of the discovered loss, as in its paper."""
_MAX_EXPONENT = 40.0
"""Of exp(x) in a divergence: its square, which ipo computes, is finite in fp32."""


@dataclass(frozen=True)
class PairLogProbs:
    """A model's log-probabilities of the completions of pairs; each field is a tensor ``[pairs]``."""

    chosen: Tensor
    """Log-probability of each preferred completion in nats, the sum over its tokens, weighted or not; fp32."""
    rejected: Tensor
    """The same of the rejected completion."""
    chosen_length: Tensor
    """Tokens of each preferred completion that were summed over; int64."""
    rejected_length: Tensor
    """The same of the rejected completion."""


def pair_log_probs(token_log_probs: Tensor, lengths: Tensor, *, ld_alpha: float = 1.0) -> PairLogProbs:
    """Sums the log-probabilities of single tokens to those of completions, in fp32.

    ``token_log_probs`` is ``[sum(lengths)]`` in nats, completion by completion: all preferred ones first, then the
    rejected ones in the same order; ``lengths`` is ``[2 * pairs]`` (int64), the tokens of each. ``ld_alpha`` is the
    weight of the tokens by which a completion is longer than the other of its pair: length-desensitized DPO, Liu et al.
    2024 (arXiv 2409.06411).
    """
    if ld_alpha != 1:
        each = functools.partial(torch.repeat_interleave, repeats=lengths, output_size=len(token_log_probs))
        positions = torch.arange(len(token_log_probs), device=lengths.device) - each(lengths.cumsum(0) - lengths)
        is_shared = positions < each(torch.minimum(*lengths.chunk(2)).repeat(2))
        token_log_probs = torch.where(is_shared, token_log_probs, ld_alpha * token_log_probs.float())
    return PairLogProbs(*segment_sums(token_log_probs, lengths).chunk(2), *lengths.chunk(2))


class _Options(NamedTuple):
    beta: float
    label_smoothing: float
    gamma: float


@dataclass(frozen=True)
class LossType:
    """A type of preference loss: its formula, and what it needs."""

    formula: Callable[[Tensor, Tensor, _Options], Tensor]
    """The loss ``[pairs]`` of the scores of the chosen and of the rejected completions, ``[pairs]`` each."""
    needs_reference: bool = True
    """Whether a score is the log-probability under the policy minus that under the reference, or that of the policy."""
    per_token: bool = False
    """True if scores are divided by the number of a completion's tokens."""
    label_smoothing: Literal["none", "optional", "required"] = "none"
    """Whether the formula has a probability that the labels of a pair are swapped."""
    any_divergence: bool = False
    """True for a formula of the difference of the scores alone. The normalizer of the best policy, which is not known,
    cancels in it, so that another divergence from the reference than the reverse KL may be used."""


def _logistic(h: Tensor, smoothing: float) -> Tensor:
    loss = -(1 - smoothing) * F.logsigmoid(h)
    return loss - smoothing * F.logsigmoid(-h) if smoothing else loss


def _sigmoid(chosen: Tensor, rejected: Tensor, o: _Options) -> Tensor:
    return _logistic(o.beta * (chosen - rejected), o.label_smoothing)


def _robust(chosen: Tensor, rejected: Tensor, o: _Options) -> Tensor:
    h, flipped = o.beta * (chosen - rejected), o.label_smoothing
    return ((flipped - 1) * F.logsigmoid(h) + flipped * F.logsigmoid(-h)) / (1 - 2 * flipped)


def _exo(chosen: Tensor, rejected: Tensor, o: _Options) -> Tensor:
    h, smoothing = o.beta * (chosen - rejected), o.label_smoothing
    log_p, log_not_p = F.logsigmoid(h), F.logsigmoid(-h)
    return log_p.exp() * (log_p - math.log1p(-smoothing)) + log_not_p.exp() * (log_not_p - math.log(smoothing))


def _nca(chosen: Tensor, rejected: Tensor, o: _Options) -> Tensor:
    chosen, rejected = o.beta * chosen, o.beta * rejected
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))


def _discopop(chosen: Tensor, rejected: Tensor, o: _Options) -> Tensor:
    h = o.beta * (chosen - rejected)
    weight = torch.sigmoid(h / _DISCOPOP_TAU)
    # the weight inside the exponential: beside one that overflows, a weight of 0 would make it NaN
    return (weight - 1) * F.logsigmoid(h) + torch.exp(F.logsigmoid(h / _DISCOPOP_TAU) - h)


def _log_odds(log_probs: Tensor) -> Tensor:
    # a probability that rounds to 1 has no odds
    below_one = log_probs.clamp(max=-torch.finfo(log_probs.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))


LOSS_TYPES: dict[PreferenceLoss, LossType] = {
    "sigmoid": LossType(_sigmoid, label_smoothing="optional", any_divergence=True),
    "ipo": LossType(lambda c, r, o: (c - r - 1 / (2 * o.beta)).square(), per_token=True, any_divergence=True),
    "hinge": LossType(lambda c, r, o: F.relu(1 - o.beta * (c - r)), any_divergence=True),
    "robust": LossType(_robust, label_smoothing="required", any_divergence=True),
    "exo_pair": LossType(_exo, label_smoothing="required", any_divergence=True),
    "nca_pair": LossType(_nca),
    "bco_pair": LossType(lambda c, r, o: -F.logsigmoid(o.beta * c) - F.logsigmoid(-o.beta * r)),
    "sppo_hard": LossType(lambda c, r, o: (c - 0.5 / o.beta).square() + (r + 0.5 / o.beta).square()),
    "apo_zero": LossType(lambda c, r, o: torch.sigmoid(-o.beta * c) + torch.sigmoid(o.beta * r)),
    "apo_down": LossType(lambda c, r, o: torch.sigmoid(o.beta * c) + torch.sigmoid(o.beta * (r - c))),
    "discopop": LossType(_discopop, any_divergence=True),
    "sigmoid_norm": LossType(_sigmoid, per_token=True, label_smoothing="optional", any_divergence=True),
    "simpo": LossType(
        lambda c, r, o: _logistic(o.beta * (c - r) - o.gamma, o.label_smoothing),
        needs_reference=False,
        per_token=True,
        label_smoothing="optional",
    ),
    "cpo": LossType(_sigmoid, needs_reference=False, label_smoothing="optional"),
    "orpo": LossType(
        lambda c, r, o: -o.beta * F.logsigmoid(_log_odds(c) - _log_odds(r)), needs_reference=False, per_token=True
    ),
}


def preference_losses(
    policy: PairLogProbs,
    reference: PairLogProbs | None,
    *,
    loss_type: PreferenceLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.5,
    f_divergence_type: FDivergence = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> Tensor:
    """Returns the loss of every pair: ``[pairs]``, fp32.

    With c the policy's log-probability of the chosen completion minus the reference's, r the same of the rejected one,
    h = c - r, s the logistic function and e the ``label_smoothing``, the losses are:

    - sigmoid: -log s(beta h), Rafailov et al. 2023 (arXiv 2305.18290), equation 7; with e the chance that a pair is
      the wrong way round, -(1-e) log s(beta h) - e log s(-beta h).
    - sigmoid_norm: the same of c and r per token, Lambert et al. 2024 (arXiv 2411.15124), equation 6.
    - hinge: max(0, 1 - beta h), Zhao et al. 2023 (arXiv 2305.10425), as normalised in arXiv 2309.06657.
    - ipo: (h - 1 / (2 beta))^2, Azar et al. 2023 (arXiv 2310.12036), equation 17, of c and r per token: sums would
      make the loss grow with the square of the length.
    - robust: (-(1-e) log s(beta h) + e log s(-beta h)) / (1 - 2e), Chowdhury et al. 2024 (arXiv 2403.00409).
    - exo_pair: the divergence KL(p || q) of p = (s(beta h), s(-beta h)) from q = (1-e, e), Ji et al. 2024
      (arXiv 2402.00856), equation 16.
    - nca_pair: -log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2, Chen et al. 2024 (arXiv 2402.05369).
    - bco_pair: -log s(beta c) - log s(-beta r), Jung et al. 2024 (arXiv 2404.04656), with a reward shift of 0.
    - sppo_hard: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2, Wu et al. 2024 (arXiv 2405.00675), equation 4.7 with the
      preferences taken as certain.
    - apo_zero: s(-beta c) + s(beta r), and apo_down: s(beta c) + s(-beta h), D'Oosterlinck et al. 2024
      (arXiv 2408.06266), equations 7 and 8: for completions better and worse than the model's own.
    - discopop: -(1-m) log s(beta h) + m exp(-beta h) with m = s(beta h / 0.05), Lu et al. 2024 (arXiv 2406.08414),
      equation 5.
    - simpo: -log s(beta h - gamma) without a reference, per token. Meng et al. 2024 (arXiv 2405.14734), equation 6,
      where beta is 2 or more; smoothed as sigmoid is.
    - cpo: -log s(beta h) without a reference, Xu et al. 2024 (arXiv 2401.08417), equation 3; smoothed as sigmoid is.
    - orpo: -beta log s(o(c) - o(r)) without a reference, per token, with the log-odds o(x) = x - log(1 - exp(x)), Hong
      et al. 2024 (arXiv 2403.07691), equations 4 and 7.

    With another ``f_divergence_type`` than reverse_kl, f'(exp(c)) takes the place of c, and f'(exp(r)) that of r,
    before they are divided by tokens; Wang et al. 2023 (arXiv 2309.16240), table 1, without constants that cancel:

    - forward_kl: f'(t) = 1 - 1/t.
    - js_divergence: f'(t) = log(2t / (1 + t)).
    - alpha_divergence: f'(t) = (t^(a-1) - 1) / (a-1), with the ``f_alpha_divergence_coef`` a from 0 to 1, which is 1
      minus the alpha of the paper: forward_kl at 0, reverse_kl at 1.

    An exponent of these, such as -c, counts as 40 where it is larger.

    Raises ValueError when ``reference`` is None for a loss that needs one, and for a divergence that the loss has not.
    """
    kind = LOSS_TYPES[loss_type]
    if kind.needs_reference and reference is None:
        raise ValueError(f"the {loss_type} loss compares the policy with a reference, and there is none")
    if f_divergence_type != "reverse_kl" and not kind.any_divergence:
        raise ValueError(f"the {loss_type} loss has no form with the divergence {f_divergence_type}")
    chosen, rejected = _log_ratios(policy, reference if kind.needs_reference else None)
    chosen, rejected = (_slope(one, f_divergence_type, f_alpha_divergence_coef) for one in (chosen, rejected))
    if kind.per_token:
        chosen, rejected = _per_token(policy, chosen, rejected)
    return kind.formula(chosen, rejected, _Options(beta, label_smoothing, gamma))


def _log_ratios(policy: PairLogProbs, reference: PairLogProbs | None) -> tuple[Tensor, Tensor]:
    if reference is None:
        return policy.chosen, policy.rejected
    return policy.chosen - reference.chosen, policy.rejected - reference.rejected


def _slope(log_ratio: Tensor, divergence: FDivergence, alpha: float) -> Tensor:
    """Returns f'(exp(log_ratio))."""
    if divergence == "js_divergence":
        return math.log(2) + F.logsigmoid(log_ratio)
    power = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(divergence, alpha - 1)
    return torch.expm1((power * log_ratio).clamp(max=_MAX_EXPONENT)) / power if power else log_ratio


def _per_token(policy: PairLogProbs, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    return chosen / policy.chosen_length.clamp(min=1), rejected / policy.rejected_length.clamp(min=1)


@torch.no_grad()
def preference_metrics(
    policy: PairLogProbs, reference: PairLogProbs | None, beta: float, *, per_token: bool = False
) -> dict[str, Tensor]:
    """Returns metrics of training on pairs, each ``[pairs]`` in fp32.

    The reward of a completion is beta times its log-probability under the policy minus that under the reference, if
    there is one, divided by its tokens if ``per_token``. ``accuracy`` is 1 where the preferred completion has the
    higher reward.
    """
    chosen, rejected = _log_ratios(policy, reference)
    if per_token:
        chosen, rejected = _per_token(policy, chosen, rejected)
    return {
        "accuracy": (chosen > rejected).float(),
        "margin": beta * (chosen - rejected),
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
