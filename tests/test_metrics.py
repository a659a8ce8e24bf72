"""Metrics: weighted means, over everything that was added since the last read."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_training.distributed import process_group
from arctic_training.metrics import Metrics


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 50)), min_size=1, max_size=20))
def test_the_mean_is_by_weight(pairs: list[tuple[float, int]]) -> None:
    metrics = Metrics()
    for value, weight in pairs:
        metrics.add("x", torch.tensor(value, dtype=torch.float64), weight)
    total = sum(weight for _, weight in pairs)
    read = metrics.compute(alone)
    if total:
        assert read["x"] == pytest.approx(sum(v * w for v, w in pairs) / total, abs=1e-6)
    else:
        assert read == {}  # nothing was measured: no number is better than a wrong one
    assert metrics.compute(alone) == {}


def test_ranks_are_added_name_by_name() -> None:
    metrics = Metrics()
    metrics.add("b", 1.0)
    metrics.add("a", 3.0, 2)
    metrics.weight = 5
    metrics.add("b", 2.0)
    assert metrics.compute(lambda pairs: pairs * 2) == {"a": 3.0, "b": pytest.approx(11 / 6)}


def test_a_value_that_needs_a_gradient_leaves_no_graph() -> None:
    metrics = Metrics()
    loss = (torch.ones(2, requires_grad=True) * 2).sum()
    metrics.add("loss", loss)
    assert not any(part.requires_grad for parts in metrics._sums.values() for part in parts)


class Copies(TorchDispatchMode):
    """From the CPU to a GPU, for each of which the CPU would wait."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.count += out.device != args[0].device
        return out


def test_adding_does_not_wait_for_a_gpu() -> None:
    metrics = Metrics()
    with FakeTensorMode(), Copies() as copies:
        on_gpu = torch.empty((), device="cuda")
        metrics.add("x", on_gpu, 3)
        metrics.weight = 2
        metrics.add("x", on_gpu)
        metrics.add("y", on_gpu, torch.empty((), device="cuda"))
    assert copies.count == 0


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_was_added_goes_on_on_other_processes(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "rank", lambda: rank)
    shares = []
    for value in (0.25, 0.75):
        metrics = Metrics()
        metrics.add("x", value, 3)
        shares.append(metrics.state_dict())
    same, other = Metrics(), Metrics()
    same.load_state_dict(shares[1])
    assert same.state_dict() == shares[1] and same.compute(alone) == {"x": 0.75}
    other.load_sharded_state_dict(shares)
    assert other.state_dict() == {"x": [3, 6] if rank == 0 else [0, 0]}
