"""Gathering with a gradient: several processes have the value and gradient of one with all rows."""

from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.collectives import all_gather_with_grad
from tests import processes


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def loss(own: torch.Tensor, everything: torch.Tensor) -> torch.Tensor:
    """Compares own rows with all: no sum over ranks of what each could compute alone."""
    return (own @ everything.T).logsumexp(1).mean()


def gather(count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What a rank gathers, the gradient of its part when losses are averaged over the ranks, and its loss."""
    process_group.init_process_group()
    world = process_group.world_size()
    own = rows(count * world).chunk(world)[process_group.rank()].clone().requires_grad_()
    gathered = all_gather_with_grad(own)
    value = loss(own, gathered)
    (gradient,) = torch.autograd.grad(value / world, own)
    return gathered.detach(), gradient, value.item()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_are_one_process(world: int) -> None:
    everything = rows(2 * world).requires_grad_()
    expected = loss(everything, everything)
    (gradient,) = torch.autograd.grad(expected, everything)
    parts = processes.share(gather, world, 2) if world > 1 else [gather(2)]
    assert all(torch.equal(gathered, everything) for gathered, _, _ in parts)
    torch.testing.assert_close(torch.cat([part for _, part, _ in parts]), gradient, rtol=1e-5, atol=1e-7)
    assert sum(value for _, _, value in parts) / world == pytest.approx(expected.item(), rel=1e-6)


def gather_rows(counts: list[int]) -> torch.Tensor:
    process_group.init_process_group()
    rank = process_group.rank()
    return collectives.all_gather_rows(torch.full((counts[rank], 2), float(rank), requires_grad=True))


@pytest.mark.parametrize("counts", [[2, 2], [3, 1], [0, 2], [0, 0]])
def test_ranks_may_have_different_numbers_of_rows(counts: list[int]) -> None:
    for gathered in processes.share(gather_rows, 2, counts):
        assert not gathered.requires_grad and gathered.shape == (sum(counts), 2)
        assert gathered[:, 0].tolist() == [0.0] * counts[0] + [1.0] * counts[1]


class Clock:
    """Takes the place of `time`: seconds pass while a process sleeps, and ``events`` happen after so many sleeps."""

    def __init__(self, events: dict[int, Any]) -> None:
        self.now, self.sleeps, self.events = 0.0, 0, events

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        self.events.get(self.sleeps, lambda: None)()


def test_a_silent_first_process_is_given_up_and_a_machine_that_slept_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def slept() -> None:
        clock.now += 3600

    store = HashStore()
    clock = Clock({5: slept, 50: slept, 100: lambda: store.set("turn", "done")})
    monkeypatch.setattr(collectives, "time", clock)
    collectives._wait(store, "turn")
    assert clock.sleeps == 100

    clock = Clock({40: lambda: store.add("next/beat", 1)})
    monkeypatch.setattr(collectives, "time", clock)
    with pytest.raises(RuntimeError, match="the first process has sent no heartbeat for 300 s"):
        collectives._wait(store, "next")
    assert 310 < clock.now < 330  # since the one that it sent
