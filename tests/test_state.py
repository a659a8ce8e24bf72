"""State: strict, whole, and untouched by what must leave no trace."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training.distributed import process_group
from arctic_training.errors.types import ResumeError
from arctic_training.state import Progress, Rng, RunState, isolated_eval


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(np.random.normal()), float(torch.rand(()))]


def test_randomness_comes_back_exactly_and_without_a_pickle(tmp_path: pytest.TempPathFactory) -> None:
    np.random.normal()  # leaves numpy with half a pair of normal numbers in hand
    path = f"{tmp_path}/rng.pt"
    torch.save(Rng().state_dict(), path)
    first = draws()
    Rng().load_state_dict(torch.load(path, weights_only=True))
    assert draws() == first


def test_what_is_traceless_changes_neither_modes_nor_randomness_nor_gradients() -> None:
    inner = torch.nn.Dropout(0.5).eval()
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), inner).train()
    inner.eval()
    before = Rng().state_dict()["torch"]

    def fail() -> None:
        with isolated_eval([net]):
            assert not net.training and not torch.is_grad_enabled()
            draws()
            net(torch.ones(3))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert net.training and not inner.training and torch.is_grad_enabled()
    assert torch.equal(Rng().state_dict()["torch"], before)


def test_loading_is_strict_both_ways_and_then_loads_nothing() -> None:
    saved = RunState(progress=Progress(epoch=3), old=Progress()).state_dict()
    run = RunState(progress=Progress(), new=Progress())
    with pytest.raises(ResumeError, match="it holds old, which the run lacks; it lacks new, which the run has"):
        run.load_state_dict(saved)
    assert run["progress"] == Progress()


def test_parts_with_the_prefix_may_be_missing() -> None:
    saved = RunState({"progress": Progress(epoch=3), "callback.old": Progress(), "callback.kept": Progress(epoch=4)})
    run = RunState({name: Progress(epoch=1) for name in ("progress", "callback.new", "callback.kept")})
    spared = run.allow_missing("callback.")
    spared.load_state_dict(saved.state_dict())
    assert {name: vars(part)["epoch"] for name, part in run.items()} == {
        "progress": 3,
        "callback.new": 1,
        "callback.kept": 4,
    }
    spared.load_sharded_state_dict([saved.state_dict()] * 2)
    with pytest.raises(ResumeError, match="it holds old, which"):
        spared.load_state_dict(saved.state_dict() | {"old": {}})
    with pytest.raises(ResumeError, match="it lacks progress, which"):
        spared.load_sharded_state_dict([{}])


class Other:
    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.loaded.append(state["told"])


@pytest.mark.fault(18)
def test_on_other_processes_a_part_takes_the_share_of_its_rank_or_else_the_first(monkeypatch: Any) -> None:
    rngs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        rngs.append(Rng().state_dict())
    shares = [{"part": {"told": rank}, "rng": rngs[rank]} for rank in range(2)]
    drawn = []
    for rank in (0, 1, 2, 3, 3):
        monkeypatch.setattr(process_group, "rank", lambda rank=rank: rank)
        run = RunState(part=(part := Other()), rng=Rng())
        run.load_sharded_state_dict(shares)
        assert part.loaded == [rank if rank < 2 else 0]
        drawn.append(draws())
    Rng().load_state_dict(rngs[1])
    assert drawn[1] == draws()
    assert len({tuple(one) for one in drawn}) == 4 and drawn[3] == drawn[4]  # the new ones draw numbers of their own
