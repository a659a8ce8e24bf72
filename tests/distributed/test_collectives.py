"""Gathering with a gradient: several processes have the value and gradient of one with all rows."""

import pytest
import torch

from arctic_training.distributed import process_group
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
