"""Measures of retrieval: how high the texts that belong to a query are ranked among all candidates."""

import torch
from torch import Tensor


def retrieval_metrics(scores: Tensor, relevant: Tensor) -> dict[str, Tensor]:
    """Returns the measures of every query, by name, fp32 ``[queries]`` each.

    ``scores`` is ``[queries, candidates]``, floating, ``relevant`` bool of that shape, with at least one in every row.
    ``accuracy`` is 1 where the best candidate is relevant, ``mrr`` the reciprocal of the rank of the first relevant
    one, and ``ndcg@10`` the discounted cumulative gain of the first ten over the largest possible (Jaervelin and
    Kekaelaeinen 2002), gains being 0 or 1. Of equal scores relevant ones come last: equal embeddings find nothing.
    """
    scores = torch.where(relevant, torch.nextafter(scores, torch.full_like(scores, -torch.inf)), scores)
    hits = relevant.gather(1, scores.argsort(dim=1, descending=True)).float()
    first = hits.argmax(1)
    depth = min(10, hits.shape[1])
    discounts = 1 / torch.log2(torch.arange(2, depth + 2, device=hits.device))
    ideal = discounts.cumsum(0)[relevant.sum(1).clamp(max=depth) - 1]
    return {
        "accuracy": hits[:, 0],
        "mrr": 1 / (first + 1),
        "ndcg@10": (hits[:, :depth] * discounts).sum(1) / ideal,
    }
