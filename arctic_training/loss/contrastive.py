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
    anchors, order = pairs[0].sort()
    row, place = _members(*(torch.searchsorted(anchors, left, right=side) for side in (False, True)))
    texts = pairs[1][order[place]]
    columns, order = right.sort()
    pair, place = _members(*(torch.searchsorted(columns, texts, right=side) for side in (False, True)))
    belongs = torch.zeros(len(left), len(right), dtype=torch.bool, device=left.device)
    belongs[row[pair], order[place]] = True
    return belongs


def _members(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Returns every number of the ranges from ``starts`` to ``ends``, int64, behind the index of its range."""
    lengths = ends - starts
    index = torch.repeat_interleave(lengths)
    return index, torch.arange(len(index), device=index.device) + (starts - lengths.cumsum(0) + lengths)[index]
