"""Optimizers are those of their papers: torch's own class, or the formula in double precision, a few steps long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.muon import original_muon

from arctic_training.optimizer.adagrad import AdagradFactory
from arctic_training.optimizer.deepspeed_factories import MuonFactory
from arctic_training.optimizer.factory import parameter_groups
from arctic_training.optimizer.huggingface_factories import AdafactorFactory
from arctic_training.optimizer.lamb import LambFactory
from arctic_training.optimizer.lion import LionFactory
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


class Paper(torch.optim.Optimizer):
    """Steps every tensor by a formula: a subclass returns the update of a gradient, and decay is decoupled."""

    def __init__(self, groups: Any, **keys: Any) -> None:
        super().__init__(groups, {"lr": 0.01, **keys})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for x in group["params"]:
                state = self.state[x]
                state["t"] = state.get("t", 0) + 1
                rate = group["lr"] * self.scale(x, group)
                update = self.update(x.grad, state, rate, group)
                x.copy_(x - rate * group["weight_decay"] * x - update)

    def scale(self, x: torch.Tensor, group: dict[str, Any]) -> float:
        return 1.0

    def update(self, g: torch.Tensor, state: Any, rate: float, group: dict[str, Any]) -> torch.Tensor:
        raise NotImplementedError


class PaperLion(Paper):
    """Algorithm 2 of arXiv 2302.06675."""

    def update(self, g: torch.Tensor, state: Any, rate: float, group: dict[str, Any]) -> torch.Tensor:
        m, (beta1, beta2) = state.get("m", torch.zeros_like(g)), group["betas"]
        state["m"] = beta2 * m + (1 - beta2) * g
        return rate * torch.sign(beta1 * m + (1 - beta1) * g)


class PaperAdafactor(Paper):
    """Algorithms 4 and 5 of arXiv 1804.04235 with the share kept of its section 7.2 and the step of its section 8; a
    momentum is one of the steps."""

    def scale(self, x: torch.Tensor, group: dict[str, Any]) -> float:
        return max(1e-3, x.square().mean().sqrt().item()) if group["scale_parameter"] else 1.0

    def update(self, g: torch.Tensor, state: Any, rate: float, group: dict[str, Any]) -> torch.Tensor:
        kept = 1 - state["t"] ** group["decay_rate"]
        if g.dim() == 2:
            state["R"] = kept * state.get("R", 0.0) + (1 - kept) * (g**2 + 1e-30).sum(1)
            state["C"] = kept * state.get("C", 0.0) + (1 - kept) * (g**2 + 1e-30).sum(0)
            v = torch.outer(state["R"], state["C"]) / state["R"].sum()
        else:
            v = state["V"] = kept * state.get("V", 0.0) + (1 - kept) * (g**2 + 1e-30)
        u = g / v.sqrt()
        step = rate * u / max(1.0, u.square().mean().sqrt().item() / group["clip_threshold"])
        if group["beta1"] is None:
            return step
        state["m"] = group["beta1"] * state.get("m", 0.0) + (1 - group["beta1"]) * step
        return state["m"]


class PaperMuon(Paper):
    """Muon as its authors publish it (https://github.com/KellerJordan/Muon), with AdamW for the other weights."""

    def update(self, g: torch.Tensor, state: Any, rate: float, group: dict[str, Any]) -> torch.Tensor:
        if not group["muon"]:
            (beta1, beta2), t = group["betas"], state["t"]
            state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
            state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
            return rate * (state["m"] / (1 - beta1**t)) / ((state["v"] / (1 - beta2**t)).sqrt() + group["eps"])
        beta = group["momentum"]
        state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
        x = (1 - beta) * g + beta * state["m"]  # Nesterov's
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        return rate * max(1, len(g) / g.shape[1]) ** 0.5 * x


def muon_groups(net: Net) -> list[dict[str, Any]]:
    adam = {"muon": False, "betas": (0.8, 0.9), "eps": 1e-6}
    return [
        {"params": [net.up.weight, net.down.weight], "weight_decay": 0.3, "muon": True, "momentum": 0.9},
        {"params": [net.embed.weight, net.head.weight], "weight_decay": 0.3, **adam},
        {"params": [net.up.bias, net.norm.weight, net.norm.bias], "weight_decay": 0.0, **adam},
    ]


ADAFACTOR = {"clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None, "scale_parameter": False}
EVERY_KEY = {"clip_threshold": 0.5, "decay_rate": -0.6, "beta1": 0.9, "scale_parameter": True}
PAPERS: dict[str, tuple[Any, dict[str, Any], Callable[[Net], Paper]]] = {
    "lion": (LionFactory, {}, lambda net: PaperLion(parameter_groups(net, 0.3), betas=(0.9, 0.99))),
    "lion, every key": (
        LionFactory,
        {"betas": [0.5, 0.8]},
        lambda net: PaperLion(parameter_groups(net, 0.3), betas=(0.5, 0.8)),
    ),
    "adafactor": (AdafactorFactory, {}, lambda net: PaperAdafactor(parameter_groups(net, 0.3), **ADAFACTOR)),
    "adafactor, every key": (
        AdafactorFactory,
        EVERY_KEY,
        lambda net: PaperAdafactor(parameter_groups(net, 0.3), **EVERY_KEY),
    ),
    "muon": (
        MuonFactory,
        {"momentum": 0.9, "betas": [0.8, 0.9], "eps": 1e-6},
        lambda net: PaperMuon(muon_groups(net)),
    ),
}


@pytest.mark.parametrize("which", PAPERS)
def test_an_optimizer_is_that_of_its_paper(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, section, theirs = PAPERS[which]
    # DeepSpeed's Muon computes in half precision, where the processor has it, and is compiled for every shape
    monkeypatch.setattr(original_muon, "ns_compute_dtype", lambda method="gram": torch.float64)
    with torch.compiler.set_stance("force_eager"):
        actual = train(lambda net: make(factory, 0, "fp32", net, lr=0.01, weight_decay=0.3, **section), torch.float64)
    for one, same in zip(actual, train(theirs, torch.float64), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one, same, rtol=0, atol=1e-9)


def test_a_step_of_lion_has_no_direction_where_there_is_no_gradient() -> None:
    """So the embedding of a token that does not occur stays, but for the decay."""
    embedding = torch.nn.Embedding(4, 3)
    before = embedding.weight.detach().clone()
    optimizer = make(LionFactory, 0, "fp32", embedding, lr=0.01, weight_decay=0.5)
    embedding(torch.tensor([0, 2])).sum().backward()
    optimizer.step()
    kept = before * (1 - 0.01 * 0.5)
    torch.testing.assert_close(embedding.weight[[1, 3]], kept[[1, 3]])
    torch.testing.assert_close(embedding.weight[[0, 2]], kept[[0, 2]] - 0.01)


@pytest.mark.parametrize(("kind", "other"), [("lamb", "adagrad"), ("nadam", "rmsprop")])
def test_a_run_resumes_to_the_bit(kind: str, other: str, tmp_path: Path) -> None:
    sections = {"optimizer": {"type": kind, "lr": 1e-3}, "discriminator_optimizer": {"type": other, "lr": 1e-3}}
    check_resume({"type": "gan", **gan(tmp_path), **sections}, steps=3)
