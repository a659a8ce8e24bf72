"""Losses on pairs of completions of one prompt, of which the first is preferred: DPO and its variants."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "simpo"]


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

    @property
    def logratio(self) -> Tensor:
        """Log-probability of the preferred completion minus that of the rejected one: ``[pairs]`` in nats."""
        return self.chosen - self.rejected

    @property
    def length_normalized_logratio(self) -> Tensor:
        """The same difference of the mean log-probabilities per token: ``[pairs]`` in nats."""
        return self.chosen / self.chosen_length.clamp(min=1) - self.rejected / self.rejected_length.clamp(min=1)


def pair_log_probs(token_log_probs: Tensor, lengths: Tensor) -> PairLogProbs:
    """Sums the log-probabilities of single tokens to those of completions, in fp32.

    ``token_log_probs`` is ``[sum(lengths)]`` in nats, completion by completion: all preferred ones first, then the
    rejected ones in the same order; ``lengths`` is ``[2 * pairs]`` (int64), the tokens of each.
    """
    # segment by segment, in order: unlike index_add, the same to the last bit on every run, on a GPU too
    sums = torch.segment_reduce(token_log_probs.float(), "sum", lengths=lengths, unsafe=True)
    (chosen, rejected), (chosen_length, rejected_length) = sums.chunk(2), lengths.chunk(2)
    return PairLogProbs(chosen, rejected, chosen_length, rejected_length)


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

    With h the policy's `PairLogProbs.logratio` minus the reference's, the losses are:

    - sigmoid: -log sigmoid(beta h), Rafailov et al. 2023 (arXiv 2305.18290), equation 7; with ``label_smoothing`` e
      the chance that a pair is the wrong way round, -(1-e) log sigmoid(beta h) - e log sigmoid(-beta h).
    - hinge: max(0, 1 - beta h), Zhao et al. 2023 (arXiv 2305.10425), as normalised in arXiv 2309.06657.
    - ipo: (h' - 1 / (2 beta))^2, Azar et al. 2023 (arXiv 2310.12036), equation 17, with h' the difference of
      the log-ratios per token: sums would make the loss grow with the square of the length.
    - simpo: -log sigmoid(beta m - gamma) with m the policy's log-ratio per token, without a reference. Meng et al.
      2024 (arXiv 2405.14734), equation 6, where beta is 2 or more; smoothed as sigmoid is.

    Raises ValueError when ``reference`` is None for another loss than simpo.
    """
    if loss_type == "simpo":
        return _logistic(beta * policy.length_normalized_logratio - gamma, label_smoothing)
    if reference is None:
        raise ValueError(f"the {loss_type} loss compares the policy with a reference, and there is none")
    if loss_type == "ipo":
        return (policy.length_normalized_logratio - reference.length_normalized_logratio - 1 / (2 * beta)).square()
    h = beta * (policy.logratio - reference.logratio)
    return F.relu(1 - h) if loss_type == "hinge" else _logistic(h, label_smoothing)


def _logistic(h: Tensor, smoothing: float) -> Tensor:
    loss = -(1 - smoothing) * F.logsigmoid(h)
    return loss - smoothing * F.logsigmoid(-h) if smoothing else loss


@torch.no_grad()
def preference_metrics(policy: PairLogProbs, reference: PairLogProbs | None, beta: float) -> dict[str, Tensor]:
    """Returns metrics of training on pairs, each ``[pairs]`` in fp32.

    The reward of a completion is beta times its log-probability under the policy minus that under the reference (per
    token where there is no reference). ``accuracy`` is 1 where the preferred completion has the higher reward.
    """
    if reference is None:
        chosen = beta * policy.chosen / policy.chosen_length.clamp(min=1)
        rejected = beta * policy.rejected / policy.rejected_length.clamp(min=1)
    else:
        chosen, rejected = beta * (policy.chosen - reference.chosen), beta * (policy.rejected - reference.rejected)
    return {
        "accuracy": (chosen > rejected).float(),
        "margin": chosen - rejected,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
