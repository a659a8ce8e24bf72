"""Divergences between the next-token distributions of two models."""

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "jensen_shannon"]


def divergences(
    logits: Tensor, target_logits: Tensor, *, kind: Divergence, temperature: float = 1.0, mixture: float = 0.5
) -> Tensor:
    """Returns the divergence of each row of ``logits`` from ``target_logits``, in nats, times temperature squared.

    Both are ``[n, vocabulary]``; the result is ``[n]``, a sum over the vocabulary. With q the softmax of the logits
    over the temperature, and p that of the target logits, ``forward`` is KL(p | q), ``reverse`` KL(q | p), and
    ``jensen_shannon`` b KL(p | m) + (1 - b) KL(q | m) with m = b p + (1 - b) q, where b is ``mixture``, between 0 and 1
    (Agarwal et al. 2023, arXiv 2306.13649, equation 1). The square keeps the size of the gradients when the temperature
    changes (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """
    log_q, log_p = (logits / temperature).log_softmax(-1), (target_logits / temperature).log_softmax(-1)
    if kind == "forward":
        values = _kl(log_p, log_q)
    elif kind == "reverse":
        values = _kl(log_q, log_p)
    else:
        log_m = torch.logaddexp(log_p + math.log(mixture), log_q + math.log1p(-mixture))
        values = mixture * _kl(log_p, log_m) + (1 - mixture) * _kl(log_q, log_m)
    return temperature**2 * values


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
