"""Divergences of two models: TRL's formula, their limits, and the gradients of the sum in chunks."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arctic_training.loss.divergence import Divergence, divergences
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
