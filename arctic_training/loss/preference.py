"""Losses on pairs of completions of one prompt, of which the first is preferred: DPO and its variants."""

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

_DISCOPOP_TAU = 0.05
"""Temperature of the discovered loss, as in its paper."""


@dataclass(frozen=True)
class PairLogProbs:
    """A model's log-probabilities of the completions of pairs; each field is a tensor ``[pairs]``."""

    chosen: Tensor
    """Log-probability of each preferred completion in nats, summed over its tokens; fp32."""
    rejected: Tensor
    """The same of the rejected completion."""
    chosen_length: Tensor
    """Tokens of each preferred completion that were summed over; int64."""
    rejected_length: Tensor
    """The same of the rejected completion."""


def pair_log_probs(token_log_probs: Tensor, lengths: Tensor) -> PairLogProbs:
    """Sums the log-probabilities of single tokens to those of completions, in fp32.

    ``token_log_probs`` is ``[sum(lengths)]`` in nats, completion by completion: all preferred ones first, then the
    rejected ones in the same order; ``lengths`` is ``[2 * pairs]`` (int64), the tokens of each.
    """
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
    """Whether scores are divided by the number of a completion's tokens."""
    label_smoothing: Literal["none", "optional", "required"] = "none"
    """Whether the formula has a probability that the labels of a pair are swapped."""


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
    "sigmoid": LossType(_sigmoid, label_smoothing="optional"),
    "ipo": LossType(lambda c, r, o: (c - r - 1 / (2 * o.beta)).square(), per_token=True),
    "hinge": LossType(lambda c, r, o: F.relu(1 - o.beta * (c - r))),
    "robust": LossType(_robust, label_smoothing="required"),
    "exo_pair": LossType(_exo, label_smoothing="required"),
    "nca_pair": LossType(_nca),
    "bco_pair": LossType(lambda c, r, o: -F.logsigmoid(o.beta * c) - F.logsigmoid(-o.beta * r)),
    "sppo_hard": LossType(lambda c, r, o: (c - 0.5 / o.beta).square() + (r + 0.5 / o.beta).square()),
    "apo_zero": LossType(lambda c, r, o: torch.sigmoid(-o.beta * c) + torch.sigmoid(o.beta * r)),
    "apo_down": LossType(lambda c, r, o: torch.sigmoid(o.beta * c) + torch.sigmoid(o.beta * (r - c))),
    "discopop": LossType(_discopop),
    "sigmoid_norm": LossType(_sigmoid, per_token=True, label_smoothing="optional"),
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

    Raises ValueError when ``reference`` is None for a loss that needs one.
    """
    kind = LOSS_TYPES[loss_type]
    if kind.needs_reference and reference is None:
        raise ValueError(f"the {loss_type} loss compares the policy with a reference, and there is none")
    chosen, rejected = _scores(policy, reference if kind.needs_reference else None, per_token=kind.per_token)
    return kind.formula(chosen, rejected, _Options(beta, label_smoothing, gamma))


def _scores(policy: PairLogProbs, reference: PairLogProbs | None, *, per_token: bool) -> tuple[Tensor, Tensor]:
    chosen, rejected = policy.chosen, policy.rejected
    if reference is not None:
        chosen, rejected = chosen - reference.chosen, rejected - reference.rejected
    if per_token:
        return chosen / policy.chosen_length.clamp(min=1), rejected / policy.rejected_length.clamp(min=1)
    return chosen, rejected


@torch.no_grad()
def preference_metrics(
    policy: PairLogProbs, reference: PairLogProbs | None, beta: float, *, per_token: bool = False
) -> dict[str, Tensor]:
    """Returns metrics of training on pairs, each ``[pairs]`` in fp32.

    The reward of a completion is beta times its log-probability under the policy minus that under the reference, if
    there is one, divided by its tokens if ``per_token``. ``accuracy`` is 1 where the preferred completion has the
    higher reward.
    """
    chosen, rejected = _scores(policy, reference, per_token=per_token)
    return {
        "accuracy": (chosen > rejected).float(),
        "margin": beta * (chosen - rejected),
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
