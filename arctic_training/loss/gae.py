"""Advantages of tokens from their rewards and the values of a critic, and the critic's loss."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def generalized_advantages(
    rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Returns the generalized advantage estimate of every token: ``[tokens]``, completion by completion.

    Schulman et al. 2016 (arXiv 1506.02438), equations 11 and 16: sum over k of (``gamma`` ``gae_lambda``)^k times the
    residual r + ``gamma`` v' - v of the token k places further on, where v' is the value after the token; a completion
    ends with a value of 0, finished or not. ``rewards`` and ``values``, those of each token and of the state that it
    was chosen in, are ``[tokens]`` of one floating dtype; ``lengths`` is ``[completions]`` (int64).
    """
    sizes = lengths.tolist()
    reward, value = (pad_sequence(list(torch.split(one, sizes)), batch_first=True) for one in (rewards, values))
    residual = reward + gamma * torch.nn.functional.pad(value[:, 1:], (0, 1)) - value
    advantage, columns = torch.zeros_like(residual[:, 0]), list[Tensor]()
    for column in reversed(residual.unbind(1)):
        advantage = column + gamma * gae_lambda * advantage
        columns.append(advantage)
    is_token = torch.arange(residual.shape[1], device=lengths.device) < lengths[:, None]
    return torch.stack(columns[::-1], 1)[is_token]


def discounted_returns(rewards: Tensor, lengths: Tensor, *, gamma: float) -> Tensor:
    """Returns the sum of the rewards from each token on, one k places further on times ``gamma``^k: ``[tokens]``.

    ``rewards`` is ``[tokens]``, floating, completion by completion; ``lengths`` is ``[completions]`` (int64).
    """
    return generalized_advantages(rewards, torch.zeros_like(rewards), lengths, gamma=gamma, gae_lambda=1.0)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Returns half the squared error of every value: ``[tokens]``.

    With ``clip``, the larger of it and that of the value brought to within ``clip`` of the old one, so that a step
    gains nothing by moving a value further (Schulman et al. 2017; Ziegler et al. 2019, arXiv 1909.08593). All tensors
    are ``[tokens]`` of one floating dtype.
    """
    errors = (values - returns).square()
    if clip is not None:
        errors = errors.maximum((old_values + (values - old_values).clamp(-clip, clip) - returns).square())
    return errors / 2
