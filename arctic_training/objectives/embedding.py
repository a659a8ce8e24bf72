"""Contrastive training of embeddings: a text is to be nearer to the text that belongs to it than to all others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.collectives import all_gather_with_grad
from arctic_training.evaluation.retrieval import retrieval_metrics
from arctic_training.loss.contrastive import info_nce_losses, positive_pairs
from arctic_training.objectives.text_encoder import TextEncoderConfig, TextEncoderTrainer
from arctic_training.state import Rng

_CHUNK = 2**24
"""Pairs of an anchor and a candidate that are compared at a time in an evaluation."""


class EmbeddingConfig(TextEncoderConfig):
    """Keys of the trainer `embedding`."""

    temperature: HumanFloat = Field(default=0.05, gt=0)
    """Divides the similarities; 0.05 is a ``scale`` of 20."""
    symmetric: bool = False
    """Also find the anchor of a positive among all anchors; the loss is the mean of both directions."""


class Embeddings(NamedTuple):
    """The embeddings of a batch."""

    anchors: Tensor
    """``[rows, width]``, float32."""
    candidates: Tensor
    """``[rows * (1 + negatives), width]``, float32: the positives first."""


class EmbeddingTrainer(TextEncoderTrainer):
    """Trains an encoder of texts on pairs, with the other rows of the window as negatives (InfoNCE).

    The negatives of an anchor are all other candidates of the window, of all micro-batches and ranks, so the loss does
    not depend on how the global batch is split. With accumulation the embeddings are computed twice (GradCache, Gao et
    al. 2021, arXiv 2101.06983): without gradients for the whole window, then for each micro-batch. In an evaluation
    the candidates are those of the whole evaluation set. `PairDataFactory` lists the keys of a batch.
    """

    name = "embedding"
    config: EmbeddingConfig
    shares_sequences = False
    eval_metrics = ("accuracy", "mrr", "ndcg@10")
    _cache: list[tuple[Mapping[str, Any], Tensor, tuple[Tensor, ...]]]

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the pairs of the window: a float32 scalar in nats."""
        if not torch.is_grad_enabled():
            self.metrics.kept.append((batch, self.embed(batch)))  # see `finalize_eval_metrics`
            return torch.zeros((), device=self.device)
        if self.window.size == 1:
            return self._share([batch], self.embed(batch)).squeeze(0)
        if self.window.index == 0:
            self._fill_cache()
        rng, loss, gradients = self._cache[self.window.index]
        Rng().load_state_dict(rng)
        products = [(one * gradient).sum() for one, gradient in zip(self.embed(batch), gradients, strict=True)]
        surrogate = torch.stack(products).sum()
        return loss + (surrogate - surrogate.detach())

    def _fill_cache(self) -> None:
        """Computes the loss of each micro-batch of the window, and its gradients by the micro-batch's embeddings.

        Kept with them are the random generators with which the embeddings were computed.
        """
        batches, states, parts = self.window.batches, [], list[Embeddings]()
        with torch.no_grad():
            for batch in batches:
                states.append(Rng().state_dict())
                parts.append(self.embed(batch))
        joined = Embeddings(*(torch.cat(some).requires_grad_() for some in zip(*parts, strict=True)))
        losses = self._share(batches, joined)
        gradients = [one.chunk(len(batches)) for one in torch.autograd.grad(losses.sum(), joined)]
        self._cache = list(zip(states, losses.detach(), zip(*gradients, strict=True), strict=True))

    def _share(self, batches: Sequence[Batch], embeddings: Embeddings) -> Tensor:
        """Returns each batch's part of the mean over the pairs of the window: float32 ``[batches]``."""
        weights = torch.stack([batch["row_weights"] / batch["num_items_in_batch"] for batch in batches])
        return (self.losses(batches, embeddings).view_as(weights) * weights).sum(1)

    def embed(self, batch: Batch) -> Embeddings:
        """Returns the embeddings of a batch's texts."""
        return Embeddings(self.embed_texts(batch["anchor"]), self.embed_texts(batch["candidates"]))

    def losses(self, batches: Sequence[Batch], embeddings: Embeddings) -> Tensor:
        """Returns the loss of every row of the batches, float32 ``[rows]`` in nats, against those of all ranks.

        ``embeddings`` are those of the batches, one after the other.
        """
        pool = _gather(batches, embeddings)
        first = process_group.rank() * len(embeddings.anchors)
        own = torch.arange(first, first + len(embeddings.anchors), device=self.device)
        positives, pairs = pool.positives[own], (pool.anchor_ids, pool.candidate_ids[pool.positives])
        excluded = pool.fills | positive_pairs(pool.anchor_ids[own], pool.candidate_ids, pairs)
        losses = self.info_nce(embeddings.anchors, pool.candidates, positives, excluded)
        if self.config.symmetric:
            excluded = pool.fills[pool.positives] | positive_pairs(*pairs, pairs).T[own]
            losses = (losses + self.info_nce(pool.candidates[positives], pool.anchors, own, excluded)) / 2
        return losses

    def info_nce(self, queries: Tensor, candidates: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
        """Returns `info_nce_losses` of embeddings as the recipe compares them, float32 ``[queries]``.

        ``queries`` is ``[queries, width]``, ``candidates`` ``[candidates, width]``; ``matryoshka_dims`` are summed.
        """
        config, total = self.config, torch.zeros(len(queries), device=queries.device)
        for n, dim in enumerate(config.matryoshka_dims or [queries.shape[1]]):
            similarities = self.similarities(queries[:, :dim], candidates[:, :dim])
            losses = info_nce_losses(similarities / config.temperature, targets, excluded)
            total = total + (config.matryoshka_weights[n] if config.matryoshka_weights else 1) * losses
        return total

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the mean loss and the measures of retrieval of all anchors among all texts of the evaluation set."""
        batches, parts = zip(*self.metrics.kept, strict=True)
        embeddings = Embeddings(*map(torch.cat, zip(*parts, strict=True)))
        pool = _gather(batches, embeddings)
        ids = torch.unique(pool.candidate_ids)  # sorted
        texts = pool.candidates.new_empty(len(ids), pool.candidates.shape[1])
        texts[torch.searchsorted(ids, pool.candidate_ids)] = pool.candidates
        pairs = (pool.anchor_ids, pool.candidate_ids[pool.positives])
        targets = torch.searchsorted(ids, pairs[1])
        first = process_group.rank() * len(embeddings.anchors)
        own = torch.arange(first, first + len(embeddings.anchors), device=self.device)
        own = own[~pool.fills[pool.positives[own]]]
        sums: dict[str, Tensor] = {}
        for some in torch.split(own, max(1, _CHUNK // len(ids))):
            relevant = positive_pairs(pool.anchor_ids[some], ids, pairs)
            queries = pool.anchors[some]
            values = {"loss": self.info_nce(queries, texts, targets[some], relevant)}
            values |= retrieval_metrics(self.similarities(queries, texts), relevant)
            sums = {name: sums.get(name, 0) + value.sum().double() for name, value in values.items()}
        names = ("loss", "accuracy", "mrr", "ndcg@10")
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        local = torch.stack([*(sums.get(name, zero) for name in names), zero + len(own)])
        *totals, count = collectives.all_reduce(local).tolist()
        return means | {name: total / count for name, total in zip(names, totals, strict=True)}


class _Pool(NamedTuple):
    """The texts of batches on all ranks."""

    anchors: Tensor
    """``[rows, width]``, float32."""
    candidates: Tensor
    """``[candidates, width]``, float32."""
    anchor_ids: Tensor
    """``[rows]``, int64."""
    candidate_ids: Tensor
    """``[candidates]``, int64."""
    positives: Tensor
    """The candidate of each row that is its positive, int64 ``[rows]``."""
    fills: Tensor
    """Whether a candidate is of a row that only fills a batch, bool ``[candidates]``."""


def _gather(batches: Sequence[Batch], embeddings: Embeddings) -> _Pool:
    """Returns the texts of ``batches``, whose ``embeddings`` follow one another, from all ranks."""
    columns = [[batch[name] for batch in batches] for name in ("anchor_ids", "candidate_ids", "row_weights")]
    anchor_ids, candidate_ids, weights = (all_gather_with_grad(torch.cat(parts)) for parts in columns)
    anchors, candidates = map(all_gather_with_grad, embeddings)
    rows = len(batches[0]["anchor_ids"])
    each = len(candidates) // len(anchors)
    places = torch.arange(len(candidates), device=candidates.device).view(-1, each, rows)
    fills = (weights == 0).view(-1, 1, rows).expand(-1, each, -1)
    return _Pool(anchors, candidates, anchor_ids, candidate_ids, places[:, 0].flatten(), fills.flatten())
