"""Contrastive losses of embeddings, with the other rows as negatives: InfoNCE."""

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce_losses(logits: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """Returns the loss of every query in nats: ``[queries]`` as ``logits``, floating.

    It is the cross-entropy of the query's own candidate among all of them: van den Oord et al. 2018 (arXiv 1807.03748),
    equation 4, with the other candidates of a batch as negatives, Henderson et al. 2017 (arXiv 1705.00652), section
    4.2. ``logits`` are similarities divided by a temperature, ``[queries, candidates]``; ``targets``, int64
    ``[queries]``, are the own candidates. Those that are ``excluded``, bool ``[queries, candidates]``, are no
    negatives; the target never is.
    """
    own = F.one_hot(targets, logits.shape[1]).bool()
    return F.cross_entropy(logits.masked_fill(excluded & ~own, -torch.inf), targets, reduction="none")


def positive_pairs(left: Tensor, right: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Returns which of the texts ``right`` belong to each of ``left``: bool ``[left, right]``.

    All are int64 ids of texts; ``pairs`` are two tensors ``[pairs]``, with the ids of texts that belong together. So
    several positives of one anchor are no negatives of each other, nor are equal texts.
    """
    # an odd factor is a bijection of 64 bits; two different pairs get one key as rarely as two texts get one id
    factor = -7046029254386353131
    keys = left[:, None] * factor + right[None]
    return torch.isin(keys, pairs[0] * factor + pairs[1])
