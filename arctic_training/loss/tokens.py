"""Counts the tokens of a batch while it is in main memory: for the throughput of a run, and its operations."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from arctic_training.loss.targets import IGNORE_INDEX


class TokenCounts(NamedTuple):
    """The tokens of some documents."""

    tokens: int = 0
    """Tokens that the model reads, without padding."""
    squares: int = 0
    """The sum of the squared lengths of the documents, by which the cost of attention grows."""
    labels: int = 0
    """Tokens that are predicted."""


NO_TOKENS = TokenCounts()
"""Those of what has no tokens."""


def count_tokens(batch: object) -> TokenCounts:
    """Returns the tokens of a batch of documents, padded or packed; all are 0 for other batches.

    ``input_ids`` and ``labels`` are int64 ``[rows, T]``, with ``attention_mask``, int64 ``[rows, T]``, or with
    ``cu_seq_lens_q``, int32 ``[documents + 1]``. A document without a label only fills the batch and does not count;
    where labels are not those of tokens, every document counts. A batch without ``input_ids`` has those of the
    mappings in it.
    """
    if not isinstance(batch, Mapping):
        return NO_TOKENS
    ids, labels, ends, mask = (batch.get(key) for key in ("input_ids", "labels", "cu_seq_lens_q", "attention_mask"))
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.device.type != "cpu":
        parts = [] if isinstance(ids, Tensor) else [count_tokens(one) for one in batch.values()]
        return TokenCounts(*(sum(part[n] for part in parts) for n in range(3)))
    of_tokens = isinstance(labels, Tensor) and labels.shape == ids.shape and not labels.is_floating_point()
    is_label = labels != IGNORE_INDEX if isinstance(labels, Tensor) and of_tokens else None
    if isinstance(ends, Tensor):
        lengths = ends.diff().long()
        counts = None if is_label is None else nn.functional.pad(is_label[0].cumsum(0), (1, 0))[ends.long()].diff()
    else:
        lengths = mask.sum(1) if isinstance(mask, Tensor) else torch.full((len(ids),), ids.shape[1])
        counts = None if is_label is None else is_label[:, 1:].sum(1)
    if counts is not None:
        lengths = lengths[counts > 0]
    return TokenCounts(int(lengths.sum()), int(lengths.square().sum()), 0 if counts is None else int(counts.sum()))
