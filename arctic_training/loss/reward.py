"""The loss of a reward model on pairs of completions, of which the first is preferred."""

from torch import Tensor
from torch.nn import functional as F


def reward_losses(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, center_coefficient: float = 0.0
) -> Tensor:
    """Returns the loss of every pair: ``[pairs]``, fp32.

    ``chosen`` and ``rejected`` are the rewards of both completions, ``[pairs]``. The loss is that of Bradley and Terry,
    -log sigmoid(chosen - rejected - margin): Ouyang et al. 2022 (arXiv 2203.02155), equation 1, with the ``margin``
    ``[pairs]`` of Touvron et al. 2023 (arXiv 2307.09288), equation 2. It leaves the mean of the rewards open, which
    ``center_coefficient`` * (chosen + rejected)^2 holds at 0: Eisenstein et al. 2023 (arXiv 2312.09244), section 2.
    """
    chosen, rejected = chosen.float(), rejected.float()
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -F.logsigmoid(difference)
    return losses + center_coefficient * (chosen + rejected).square() if center_coefficient else losses
