"""Divergences of two models: TRL's formula, their limits, and the gradients of the sum in chunks."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arctic_training.loss.divergence import Divergence, divergences, top_k_divergences, top_k_log_probs
from arctic_training.loss.layer_losses import sum_layer_losses
from arctic_training.loss.output_layer import LogitMap

KINDS: tuple[Divergence, ...] = ("forward", "reverse", "jensen_shannon")


def logits(rows: int, vocabulary: int, seed: int) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), *(("jensen_shannon", b) for b in (0.1, 0.5))]
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_that_of_trl_times_the_square_of_the_temperature(kind: Any, beta: float, temperature: float) -> None:
    trl = pytest.importorskip("trl.experimental.gkd")
    student, teacher, labels = logits(6, 11, 0), logits(6, 11, 1), torch.tensor([[3, -100, 5, 0, -100, 2]])
    expected = trl.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], labels=labels, beta=beta, temperature=temperature, reduction="batchmean"
    )
    kept = labels[0] != -100
    mixture = beta if kind == "jensen_shannon" else 0.5
    ours = divergences(student[kept], teacher[kept], kind=kind, temperature=temperature, mixture=mixture)
    torch.testing.assert_close(ours.mean(), temperature**2 * expected)


@given(seed=st.integers(0, 1000), kind=st.sampled_from(KINDS), temperature=st.floats(0.3, 5))
def test_it_is_positive_and_zero_for_equal_models(seed: int, kind: Divergence, temperature: float) -> None:
    student, teacher = logits(4, 7, seed), logits(4, 7, seed + 1)
    assert (divergences(student, teacher, kind=kind, temperature=temperature) > 0).all()
    # a constant added to all logits changes no probability
    same = divergences(teacher + 2, teacher, kind=kind, temperature=temperature)
    torch.testing.assert_close(same, torch.zeros_like(same))


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_the_square_keeps_the_size_of_the_gradient(kind: Any) -> None:
    """At a high temperature the gradient is that of half the mean squared difference of centred logits, at any."""
    student, teacher = logits(1, 9, 2).requires_grad_(), logits(1, 9, 3)
    centred = (student - student.mean()) - (teacher - teacher.mean())
    (gradient,) = torch.autograd.grad(divergences(student, teacher, kind=kind, temperature=1e4).sum(), student)
    torch.testing.assert_close(gradient, centred.detach() / 9, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.5), LogitMap(2.0, softcap=4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_in_chunks_are_those_of_torch(kind: Divergence, logit_map: LogitMap, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*shape, generator=generator).to(dtype) for shape in ((10, 8), (13, 8), (13,))]
    teacher, upstream = logits(10, 13, 4).float(), 0.7
    exact = [one.double().requires_grad_() for one in values]
    outputs = torch.nn.functional.linear(*exact)
    expected = divergences(logit_map(outputs), teacher.double(), kind=kind, temperature=2.0).sum()
    (expected * upstream).backward()
    ours = [one.clone().requires_grad_() for one in values]
    total = sum_layer_losses(
        *ours,
        lambda z, rows: divergences(z, teacher[rows], kind=kind, temperature=2.0),
        logit_map=logit_map,
        chunk_rows=4,
    )
    (total * upstream).backward()
    exactness = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(total.double(), expected.detach(), **exactness)
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.dtype == dtype
        torch.testing.assert_close(one.grad.double(), other.grad, **exactness)


@pytest.mark.parametrize(("vocabulary", "most"), [(1 << 14, 1 << 22), (1 << 15, 1 << 22), (1 << 17, 128 << 17)])
@pytest.mark.parametrize("labels", [300, 1200])
def test_the_logits_in_memory_do_not_grow_with_the_labels(labels: int, vocabulary: int, most: int) -> None:
    """Those of a chunk; below 128 labels a chunk would be slow."""
    sizes: list[int] = []

    def largest(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        sizes.append(logits.numel())
        return logits.amax(-1)

    with torch.no_grad():
        sum_layer_losses(torch.zeros(labels, 1), torch.zeros(vocabulary, 1), None, largest)
    assert sum(sizes) == labels * vocabulary and max(sizes) <= most


def test_the_sum_over_no_rows_is_zero_with_gradients_of_zero() -> None:
    hidden, weight = torch.zeros(0, 8, requires_grad=True), torch.ones(13, 8, requires_grad=True)
    sum_layer_losses(hidden, weight, None, lambda z, rows: z.sum(-1)).backward()
    assert weight.grad is not None and not weight.grad.any() and hidden.grad is not None


def test_gradients_are_taken_once() -> None:
    weight = torch.ones(5, 3, requires_grad=True)
    total = sum_layer_losses(torch.ones(2, 3), weight, None, lambda z, rows: z.logsumexp(-1))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        total.backward()


@given(
    seed=st.integers(0, 1000), kind=st.sampled_from(KINDS), temperature=st.floats(0.5, 3), k=st.sampled_from([1, 3, 6])
)
def test_of_the_most_likely_tokens_it_is_that_of_torch(seed: int, kind: Any, temperature: float, k: int) -> None:
    """The other tokens are one outcome; so it is no more than that of the whole vocabulary (data processing)."""
    student, teacher = logits(4, 7, seed), logits(4, 7, seed + 1)
    ids, log_probs = top_k_log_probs(teacher, k, temperature=temperature)
    q, p = ((one / temperature).softmax(-1) for one in (student, teacher))
    order = p.argsort(-1, descending=True)
    assert torch.equal(ids, order[:, :k])
    q, p = (
        torch.cat([one.gather(1, order)[:, :k], one.gather(1, order)[:, k:].sum(1, keepdim=True)], 1) for one in (q, p)
    )
    torch.testing.assert_close(log_probs.exp(), p)
    kl = torch.nn.functional.kl_div
    if kind == "jensen_shannon":
        m = 0.3 * p + 0.7 * q
        expected = 0.3 * kl(m.log(), p, reduction="none") + 0.7 * kl(m.log(), q, reduction="none")
    else:
        expected = kl(q.log(), p, reduction="none") if kind == "forward" else kl(p.log(), q, reduction="none")
    ours = top_k_divergences(student, ids, log_probs, kind=kind, temperature=temperature, mixture=0.3)
    torch.testing.assert_close(ours, temperature**2 * expected.sum(1))
    full = divergences(student, teacher, kind=kind, temperature=temperature, mixture=0.3)
    assert (ours <= full + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_whole_vocabulary_it_is_the_divergence(kind: Any) -> None:
    student, teacher = logits(5, 9, 0).requires_grad_(), logits(5, 9, 1)
    ids, log_probs = top_k_log_probs(teacher, 9, temperature=2.0)
    losses = [
        top_k_divergences(student, ids, log_probs, kind=kind, temperature=2.0),
        divergences(student, teacher, kind=kind, temperature=2.0),
    ]
    gradients = [torch.autograd.grad(one.sum(), student)[0] for one in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_finite_where_the_other_tokens_are_all_but_impossible(kind: Any) -> None:
    teacher = torch.tensor([[200.0, 0.0, -1.0, 2.0]])
    student = (-teacher).requires_grad_()
    ids, log_probs = top_k_log_probs(teacher, 1)
    loss = top_k_divergences(student, ids, log_probs, kind=kind).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert log_probs.isfinite().all() and loss.isfinite() and gradient.isfinite().all() and gradient.any()


def test_other_rows_than_those_of_the_logits_are_refused() -> None:
    ids, log_probs = top_k_log_probs(logits(2, 5, 0), 2)
    with pytest.raises(ValueError, match="2 rows of tokens for 3 rows of logits"):
        top_k_divergences(logits(3, 5, 1), ids, log_probs, kind="forward")
