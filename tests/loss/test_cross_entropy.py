"""Chunked cross-entropy is torch's, and never makes the whole vocabulary of all rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_training.loss.cross_entropy import PLAIN, LogitMap, linear_cross_entropy, logits_cross_entropy

WIDTH = 6


def draw(rows: int, vocabulary: int, seed: int, dtype: torch.dtype, *, biased: bool) -> Any:
    torch.manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if biased else None
    return hidden, weight, bias, torch.randint(vocabulary, (rows,))


def plain(hidden: Any, weight: Any, bias: Any, targets: Any, smoothing: float, logit_map: LogitMap) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias) * logit_map.scale
    if logit_map.softcap is not None:
        logits = logit_map.softcap * torch.tanh(logits / logit_map.softcap)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def leaves(*tensors: Any) -> list[Any]:
    return [None if one is None else one.detach().clone().requires_grad_() for one in tensors]


def values(inputs: list[Any], upstream: torch.Tensor, losses_of: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """The losses of all rows, their sum, and the gradients of both."""
    results = []
    for reduction, factor in (("none", upstream), ("sum", torch.tensor(0.7))):
        own = leaves(*inputs)
        losses = losses_of(*own, reduction)
        needed = [one for one in own if one is not None]
        results += [losses.detach(), *torch.autograd.grad((losses * factor).sum(), needed)]
    return results


@settings(deadline=None)
@given(
    rows=st.integers(0, 13),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 15),
    seed=st.integers(0, 99),
    smoothing=st.sampled_from([0.0, 0.3]),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0]),
    biased=st.booleans(),
)
def test_losses_and_gradients_are_torchs(
    rows: int, vocabulary: int, chunk: int, seed: int, smoothing: float, scale: float, softcap: Any, biased: bool
) -> None:
    *inputs, targets = draw(rows, vocabulary, seed, torch.float32, biased=biased)
    logit_map, upstream = LogitMap(scale, softcap), torch.randn(rows)
    options: Any = {"label_smoothing": smoothing, "logit_map": logit_map, "chunk_rows": chunk}

    def exact_losses(hidden: Any, weight: Any, bias: Any, reduction: str) -> torch.Tensor:
        losses = plain(hidden, weight, bias, targets, smoothing, logit_map)
        return losses.sum() if reduction == "sum" else losses

    doubled = [one if one is None else one.detach().double() for one in inputs]
    exact = values(doubled, upstream, exact_losses)
    moved = [values([rounded(one) for one in doubled], upstream, exact_losses) for _ in range(8)]
    actual = values(
        inputs,
        upstream,
        lambda hidden, weight, bias, reduction: linear_cross_entropy(
            hidden, weight, targets, bias, reduction=reduction, **options
        ),
    )
    for ours, expected, *near in zip(actual, exact, *moved, strict=True):
        error = max((one - expected).abs().max().item() for one in near) if expected.numel() else 0.0
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=8 * error + 1e-5)


def rounded(tensor: Any) -> Any:
    """``tensor`` (float64) with every element moved by the rounding of float32."""
    eps = torch.finfo(torch.float32).eps
    return tensor if tensor is None else tensor * (1 + eps * torch.randn_like(tensor).sign())


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_sixteen_bits_keep_their_type_and_stay_near(reduction: Any) -> None:
    hidden, weight, _, targets = draw(64, 50, 0, torch.bfloat16, biased=False)
    exact = leaves(hidden.float(), weight.float())
    plain(*exact, None, targets, 0.0, LogitMap()).sum().backward()
    loss = linear_cross_entropy(hidden, weight, targets, reduction=reduction, chunk_rows=5).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    for got, full in zip((hidden, weight), exact, strict=True):
        assert got.grad.dtype == torch.bfloat16
        assert (got.grad.float() - full.grad).norm() < 0.02 * full.grad.norm()


def test_the_gradient_of_a_large_sum_in_fp16_is_scaled_before_it_overflows() -> None:
    rows = 8192
    hidden = torch.full((rows, 4), 30.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(3, 4, dtype=torch.float16, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.int64))
    (loss / rows).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad[:, 0].float(), torch.tensor([-20.0, 10.0, 10.0]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_large_logits_neither_overflow_nor_vanish(reduction: Any) -> None:
    weight = torch.tensor([[400.0], [-400.0]])
    loss = linear_cross_entropy(torch.ones(2, 1), weight, torch.tensor([0, 1]), reduction=reduction)
    assert loss.sum().item() == 800.0


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
        return out


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_the_whole_vocabulary_of_all_rows_is_never_made(reduction: Any) -> None:
    hidden, weight, _, targets = draw(256, 200, 0, torch.float32, biased=False)
    with Sizes() as sizes:
        linear_cross_entropy(hidden, weight, targets, reduction=reduction, chunk_rows=16).sum().backward()
    assert sizes.largest == 16 * 200


def test_a_frozen_weight_gets_no_gradient_and_no_time() -> None:
    hidden, weight, _, targets = draw(8, 30, 0, torch.float32, biased=False)
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets).backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    function = "arctic_training.loss.cross_entropy._output_gradients"
    monkeypatch.setattr(function, lambda *_: pytest.fail("a gradient was made"))
    hidden, weight, _, targets = draw(8, 30, 0, torch.float32, biased=False)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)


def test_gradients_are_taken_once() -> None:
    hidden, weight, _, targets = draw(8, 30, 0, torch.float32, biased=False)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        loss.backward()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not \[n, h\], \[v, h\] and \[n\]"):
        linear_cross_entropy(torch.ones(3, 2), torch.ones(5, 4), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("logit_map", [PLAIN, LogitMap(scale=0.5, softcap=3.0, temperature=1.5)])
def test_the_entropy_and_its_gradient_are_those_of_torch(logit_map: LogitMap) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, generator=draw, dtype=torch.float32) for n in (7, 11))
    targets, upstream = torch.randint(11, (7,), generator=draw), torch.randn(2, 7, generator=draw)
    results = []
    for chunked in (True, False):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            values = linear_cross_entropy(
                *inputs, targets, reduction="none", logit_map=logit_map, chunk_rows=3, with_entropy=True
            )
        else:
            logits = inputs[0] @ inputs[1].t() * logit_map.scale
            if logit_map.softcap:
                logits = logit_map.softcap * (logits / logit_map.softcap).tanh()
            values = logits_cross_entropy(logits / logit_map.temperature, targets, with_entropy=True)
        results.append([values, *torch.autograd.grad((values * upstream).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
