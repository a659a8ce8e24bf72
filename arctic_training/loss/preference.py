"""Losses on pairs of answers to one prompt, the first preferred to the second: DPO and its relatives."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "simpo"]


@dataclass(frozen=True)
class Answers:
    """What a model thinks of the answers of ``pairs`` pairs: each field a tensor ``[pairs]``."""

    chosen: Tensor
    """Log-probability of each preferred answer in nats: the sum over its tokens."""
    rejected: Tensor
    """The same of the other answer."""
    chosen_length: Tensor
    """Tokens of each preferred answer that were summed over."""
    rejected_length: Tensor

    @property
    def logratio(self) -> Tensor:
        return self.chosen - self.rejected

    @property
    def length_normalized_logratio(self) -> Tensor:
        """The difference of the log-probabilities per token."""
        return self.chosen / self.chosen_length.clamp(min=1) - self.rejected / self.rejected_length.clamp(min=1)


def answers(token_log_probs: Tensor, lengths: Tensor) -> Answers:
    """Sum the log-probabilities of single tokens up to those of whole answers.

    ``token_log_probs`` is ``[sum(lengths)]``: one answer's tokens after the other's, all preferred answers first, then
    the others in the same order; ``lengths`` is ``[2 * pairs]``, the tokens of each.
    """
    # segment by segment, in order: unlike index_add, the same to the last bit on every run, on a GPU too
    sums = torch.segment_reduce(token_log_probs.float(), "sum", lengths=lengths, unsafe=True)
    (chosen, rejected), (chosen_length, rejected_length) = sums.chunk(2), lengths.chunk(2)
    return Answers(chosen, rejected, chosen_length, rejected_length)


def preference_losses(
    policy: Answers,
    reference: Answers | None,
    *,
    loss_type: PreferenceLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.5,
) -> Tensor:
    """The loss of every pair, ``[pairs]``. With h the policy's `Answers.logratio` less the reference's:

    - sigmoid: -log sigmoid(beta h), Rafailov et al. 2023 (arXiv 2305.18290), equation 7; with ``label_smoothing`` e
      the chance that a pair is the wrong way round, -(1-e) log sigmoid(beta h) - e log sigmoid(-beta h).
    - hinge: max(0, 1 - beta h), Zhao et al. 2023 (arXiv 2305.10425), as normalised in arXiv 2309.06657.
    - ipo: (h' - 1 / (2 beta))^2, Azar et al. 2023 (arXiv 2310.12036), equation 17, with h' the gap of the
      log-probabilities per token: sums would make the loss grow with the square of the length.
    - simpo: -log sigmoid(beta m - gamma) with m the policy's own gap per token; no reference takes part. Meng et al.
      2024 (arXiv 2405.14734), equation 6, where beta is 2 or more; smoothed as sigmoid is.

    Raises ValueError when a reference is missing where one is needed.
    """
    if loss_type == "simpo":
        return _logistic(beta * policy.length_normalized_logratio - gamma, label_smoothing)
    if reference is None:
        raise ValueError(f"the {loss_type} loss compares the policy with a reference, and none was given")
    if loss_type == "ipo":
        return (policy.length_normalized_logratio - reference.length_normalized_logratio - 1 / (2 * beta)).square()
    h = beta * (policy.logratio - reference.logratio)
    return F.relu(1 - h) if loss_type == "hinge" else _logistic(h, label_smoothing)


def _logistic(h: Tensor, smoothing: float) -> Tensor:
    loss = -(1 - smoothing) * F.logsigmoid(h)
    return loss - smoothing * F.logsigmoid(-h) if smoothing else loss


@torch.no_grad()
def preference_metrics(policy: Answers, reference: Answers | None, beta: float) -> dict[str, Tensor]:
    """What is told about training on pairs, each ``[pairs]``.

    An answer's reward is beta times its log-probability under the policy less that under the reference (per token,
    and without a reference, where there is none). ``accuracy`` is 1 where the preferred answer has the higher reward.
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
