"""Optimizers are those of their papers: torch's own class, or the formula in double precision, a few steps long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.optimizer.adagrad import AdagradFactory
from arctic_training.optimizer.factory import parameter_groups
from arctic_training.optimizer.lamb import LambFactory
from arctic_training.optimizer.torch_factories import AdamFactory, NAdamFactory, RAdamFactory, RMSpropFactory
from arctic_training.testing import check_resume
from tests.contract.cases import gan
from tests.optimizer.test_optimizers import Net, make

STEPS = 8


def train(build: Callable[[torch.nn.Module], torch.optim.Optimizer], dtype: torch.dtype = torch.float32) -> list[Any]:
    """The weights after some steps, the learning rate of each being another."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    optimizer = build(net)
    for step in range(STEPS):
        ids = torch.randint(0, 11, (32,), generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(net(ids), (ids * 3 + 1) % 11).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()
        optimizer.zero_grad()
    return [one.detach().double() for one in net.parameters()]


THEIRS: dict[str, tuple[Any, dict[str, Any], Any, dict[str, Any]]] = {
    "adam": (AdamFactory, {"betas": [0.8, 0.9]}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
    "radam": (RAdamFactory, {}, torch.optim.RAdam, {"decoupled_weight_decay": True}),
    "nadam": (
        NAdamFactory,
        {"momentum_decay": 0.1},
        torch.optim.NAdam,
        {"momentum_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "rmsprop": (RMSpropFactory, {}, torch.optim.RMSprop, {}),
    "rmsprop, every key": (
        RMSpropFactory,
        {"alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True},
        torch.optim.RMSprop,
        {"alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True},
    ),
    "adagrad": (AdagradFactory, {"lr_decay": 0.1}, torch.optim.Adagrad, {"lr_decay": 0.1}),
}


@pytest.mark.parametrize("which", THEIRS)
def test_an_optimizer_is_that_of_torch(which: str) -> None:
    factory, section, theirs, keys = THEIRS[which]
    expected = train(lambda net: theirs(parameter_groups(net, 0.3), lr=0.01, **keys))
    actual = train(lambda net: make(factory, 0, "fp32", net, lr=0.01, weight_decay=0.3, **section))
    without = train(lambda net: make(factory, 0, "fp32", net, lr=0.01, weight_decay=0, **section))
    for one, same, other in zip(actual, expected, without, strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=1e-6)
        assert one.dim() < 2 or not torch.allclose(one, other)  # the decay was not left out


class PaperLamb(torch.optim.Optimizer):
    """Algorithm 2 of arXiv 1904.00962 as it is written, with nothing kept but what it names."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for x in group["params"]:
                state = self.state.setdefault(x, {"m": 0.0, "v": 0.0, "t": 0})
                g, t = x.grad.numpy(), state["t"] + 1
                m, v = 0.9 * state["m"] + 0.1 * g, 0.999 * state["v"] + 0.001 * g**2
                state.update(m=m, v=v, t=t)
                r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-6)
                u = r + group["weight_decay"] * x.detach().numpy()
                x_norm, u_norm = (x.detach().numpy() ** 2).sum() ** 0.5, (u**2).sum() ** 0.5
                ratio = x_norm / u_norm if x_norm and u_norm else 1.0
                x.data -= torch.from_numpy(group["lr"] * ratio * u)


def test_lamb_is_that_of_the_paper() -> None:
    expected = train(lambda net: PaperLamb(parameter_groups(net, 0.3), {"lr": 0.01}), torch.float64)
    actual = train(lambda net: make(LambFactory, 0, "fp32", net, lr=0.01, weight_decay=0.3), torch.float64)
    for one, same in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=1e-9)


def test_a_step_of_lamb_is_a_share_of_the_weights_whatever_the_gradient() -> None:
    for scale in (1e-2, 1e3):
        weight = torch.nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
        net = torch.nn.ParameterList([weight, torch.nn.Parameter(torch.zeros(3, 3))])
        before = weight.detach().clone()
        optimizer = make(LambFactory, 0, "fp32", net, lr=0.01)
        net[0].grad, net[1].grad = scale * torch.ones(5, 7), torch.zeros(3, 3)
        optimizer.step()
        assert (weight - before).norm().item() == pytest.approx(0.01 * before.norm().item(), rel=1e-4)
        assert not net[1].any()  # neither weight nor gradient: no step, and no NaN


@pytest.mark.parametrize(("kind", "other"), [("lamb", "adagrad"), ("nadam", "rmsprop")])
def test_a_run_resumes_to_the_bit(kind: str, other: str, tmp_path: Path) -> None:
    sections = {"optimizer": {"type": kind, "lr": 1e-3}, "discriminator_optimizer": {"type": other, "lr": 1e-3}}
    check_resume({"type": "gan", **gan(tmp_path), **sections}, steps=3)
