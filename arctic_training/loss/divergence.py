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
    return temperature**2 * _divergences(log_q, log_p, kind, mixture)


def top_k_divergences(
    logits: Tensor,
    ids: Tensor,
    target_log_probs: Tensor,
    *,
    kind: Divergence,
    temperature: float = 1.0,
    mixture: float = 0.5,
) -> Tensor:
    """Returns the `divergences` of distributions over the tokens ``ids`` and any other token: ``[n]``.

    ``logits`` is ``[n, vocabulary]``; ``ids``, int64 ``[n, k]``, and ``target_log_probs`` are those of
    `top_k_log_probs` at the same temperature. It is at most the divergence over the whole vocabulary, which it equals
    where k is the vocabulary: outcomes that are not told apart can only hide a difference. Raises ValueError for
    another number of rows.
    """
    if len(ids) != len(logits):
        raise ValueError(f"{len(ids)} rows of tokens for {len(logits)} rows of logits")
    log_q = _of_tokens((logits / temperature).log_softmax(-1), ids)
    return temperature**2 * _divergences(log_q, target_log_probs, kind, mixture)


def top_k_log_probs(logits: Tensor, k: int, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns the ``k`` most likely tokens of each row of ``logits``, and their log-probabilities, in nats.

    ``logits`` is ``[n, vocabulary]`` and divided by the temperature. The tokens are int64 ``[n, k]``. The
    log-probabilities are ``[n, k + 1]``, the last one that of all other tokens together; where ``k`` is the vocabulary
    there are no others, and they are ``[n, k]``.
    """
    log_probs = (logits / temperature).log_softmax(-1)
    ids = log_probs.topk(k, -1).indices
    return ids, _of_tokens(log_probs, ids)


def _of_tokens(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Returns the log-probabilities of the tokens ``ids`` and, last, of all others together if there are any."""
    chosen = log_probs.gather(-1, ids)
    if ids.shape[-1] == log_probs.shape[-1]:
        return chosen
    others = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([chosen, others], -1)


def _divergences(log_q: Tensor, log_p: Tensor, kind: Divergence, mixture: float) -> Tensor:
    if kind == "forward":
        return _kl(log_p, log_q)
    if kind == "reverse":
        return _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(mixture), log_q + math.log1p(-mixture))
    return mixture * _kl(log_p, log_m) + (1 - mixture) * _kl(log_q, log_m)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
