"""InfoNCE: the formula of sentence-transformers by hand, and which candidates are no negatives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from arctic_training.evaluation.retrieval import retrieval_metrics
from arctic_training.loss.contrastive import info_nce_losses, positive_pairs

NONE = torch.zeros(1, 1, dtype=torch.bool)


def test_the_loss_and_its_gradient_are_those_of_multiple_negatives_ranking() -> None:
    """`MultipleNegativesRankingLoss`: the cross-entropy of the scaled cosines, the labels being the row numbers."""
    draw = torch.Generator().manual_seed(0)
    anchors = torch.randn(5, 8, generator=draw).requires_grad_()
    candidates = torch.randn(15, 8, generator=draw).requires_grad_()
    sides = [F.normalize(one, dim=1) for one in (anchors, candidates)]
    losses = info_nce_losses(sides[0] @ sides[1].T / 0.05, torch.arange(5), NONE)
    scores = torch.stack([F.cosine_similarity(anchor[None], candidates) for anchor in anchors]) * 20.0
    expected = F.cross_entropy(scores, torch.arange(5))
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(losses.mean(), (anchors, candidates))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (anchors, candidates)), rtol=1e-4, atol=1e-6)


def test_what_is_excluded_is_as_if_it_were_not_there() -> None:
    draw = torch.Generator().manual_seed(1)
    anchors, candidates = torch.randn(3, 4, generator=draw), torch.randn(5, 4, generator=draw)
    excluded = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 1]]).bool()
    losses = info_nce_losses(anchors @ candidates.T / 0.5, torch.arange(3), excluded)
    for row, kept in enumerate([[0, 1, 2, 4], [0, 1, 2, 3, 4], [2, 3]]):  # its own is never excluded
        alone = (anchors[row] @ candidates[kept].T / 0.5).log_softmax(0)
        assert losses[row].item() == pytest.approx(-alone[kept.index(row)].item(), abs=1e-5)


@given(st.data())
def test_texts_that_belong_together_are_those_of_some_pair(data: st.DataObject) -> None:
    number = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)
    pairs = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=8))
    left, right = (data.draw(st.lists(number, min_size=1, max_size=5)) for _ in range(2))
    left, right = left + [a for a, _ in pairs], right + [b for _, b in pairs]
    first, second = torch.tensor(pairs).T
    belongs = positive_pairs(torch.tensor(left), torch.tensor(right), (first, second))
    assert belongs.tolist() == [[(a, b) in pairs for b in right] for a in left]


def test_measures_of_retrieval_are_worked_out() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.2, 0.9, 0.5, 0.4], [0.5, 0.5, 0.5, 0.5]])
    relevant = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]).bool()
    measures = {name: values.tolist() for name, values in retrieval_metrics(scores, relevant).items()}
    second, third, fourth = (1 / math.log2(rank + 1) for rank in (2, 3, 4))
    assert measures["accuracy"] == [1, 0, 0]
    assert measures["mrr"] == pytest.approx([1, 1 / 2, 1 / 4])  # of equal scores the relevant one is last
    assert measures["ndcg@10"] == pytest.approx([(1 + fourth) / (1 + second), second, fourth])
    assert third < second


def test_only_ten_count_in_ndcg() -> None:
    scores, relevant = -torch.arange(20.0)[None], torch.zeros(1, 20, dtype=torch.bool)
    relevant[0, 10] = True
    assert retrieval_metrics(scores, relevant)["ndcg@10"].tolist() == [0]
    relevant[0, :] = True
    assert retrieval_metrics(scores, relevant)["ndcg@10"].item() == pytest.approx(1)
