"""A checkpoint goes on on another number of processes and at another ZeRO stage, with the same losses."""

from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.steps import scaler_holders, scaler_state
from arctic_training.engine.snapshot import snapshot
from tests import processes
from tests.checkpoint import elastic

STAGES = (0, 1, 2, 3)
BEFORE, AFTER = 3, 4


Move = tuple[elastic.Layout, elastic.Layout, str, str]
"""The layout before and after, the optimizer, the precision."""


@torch._dynamo.config.patch(disable=True)  # compiling Muon takes longer than everything here
def begin(root: str, cases: list[tuple[elastic.Layout, str, str]]) -> dict[Any, Any]:
    """Train, save, and train on: weights at the checkpoint, the losses after it, and the weights at the end."""
    process_group.init_process_group()
    results = {}
    for stage, optimizer, dtype in cases:
        engine = elastic.make(stage, optimizer, dtype)
        assert not any(snapshot(engine)["moments"]), "it begins with a step of its own"
        for number in range(BEFORE):
            elastic.update(engine, number)
        elastic.save(engine, Path(root) / f"{stage}_{optimizer}_{dtype}", BEFORE)
        results[stage, optimizer, dtype] = trained_on(engine, BEFORE, dtype)
    return results


@torch._dynamo.config.patch(disable=True)
def go_on(root: str, moves: list[Move]) -> dict[Move, Any]:
    process_group.init_process_group()
    results = {}
    for move in moves:
        source, here, optimizer, dtype = move
        engine = elastic.make(here, optimizer, dtype, seed=5)  # other weights, so that nothing is equal but by loading
        elastic.update(engine, 99)  # loading over an engine that was used must do too
        number = elastic.load(engine, Path(root) / f"{source}_{optimizer}_{dtype}")
        results[move] = trained_on(engine, number, dtype)
    return results


def trained_on(engine: TrainedEngine, number: int, dtype: str) -> Any:
    saved = elastic.full_tensors(engine)
    if dtype != "fp32":
        saved |= {f"{name}, fp32": master for name, master in elastic.masters(engine).items()}
    counts = engine.global_steps, engine.deepspeed.global_samples, engine.deepspeed.lr_scheduler.state_dict()
    losses = [elastic.update(engine, number + n) for n in range(AFTER)]
    end = elastic.full_tensors(engine)
    engine.destroy()
    return saved, counts, losses, end


def far(here: dict[str, Any], other: dict[str, Any]) -> float:
    assert here.keys() == other.keys()
    return max(float((here[name].float() - other[name].float()).abs().max()) for name in here)


def compare(root: Path, before: int, after: int, moves: list[Move]) -> None:
    begun = processes.share(begin, before, str(root), list({(source, *rest): None for source, _, *rest in moves}))[0]
    for results in processes.share(go_on, after, str(root), moves):
        assert len(results) == len(moves)
        for (source, here, optimizer, dtype), (saved, counts, losses, end) in results.items():
            told_saved, told_counts, told_losses, told_end = begun[source, optimizer, dtype]
            what = f"{optimizer}, {dtype}, stage {source} on {before} to stage {here} on {after}"
            assert far(saved, told_saved) == 0 and counts == told_counts, what
            assert losses == pytest.approx(told_losses, abs=1e-6 if dtype == "fp32" else 1e-2), what
            assert far(end, told_end) < (1e-5 if dtype == "fp32" else 3e-2), what


def moves(optimizer: str, *pairs: tuple[elastic.Layout, elastic.Layout], dtype: str = "fp32") -> list[Move]:
    return [(source, here, optimizer, dtype) for source, here in pairs]


OTHERS = [
    *moves("adamw", ("1 offloaded", 0), (2, "3 offloaded"), ("3 offloaded", 1), ("2 offloaded", "2 offloaded")),
    *moves("adamw", ("2 offloaded", 3), (3, "1 offloaded"), dtype="bf16"),
    *moves("sgd", (1, 3)),
    *moves("momentum", (0, 3), (3, 2)),
    *moves("rmsprop", (2, 0), (0, 1)),
    *moves("fused", (3, 1)),
    *moves("adafactor", (0, 0)),
    *moves("adagrad", (2, 0), (0, 3)),
    *moves("nadam", (3, 1)),
    *moves("lamb", (0, 0)),
    *moves("lion", (2, 0), (0, 3)),
    *moves("schedule_free", (0, 2), (1, 3), (3, 0)),
    *moves("adamw", (0, 3), (1, 0), (2, 1), (3, 2), (3, 3), dtype="bf16"),
    *moves("flat adamw", (0, 1), (3, 0), (0, 0), dtype="bf16"),
    *moves("muon", (0, 1), (1, 0), dtype="bf16"),
]


@pytest.mark.fault(18)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    compare(tmp_path, before, after, moves("adamw", (0, 0), (1, 3), (3, 1), (2, 3), (3, 3), (1, 1)))


@pytest.mark.nightly
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_other_optimizers_and_precisions(tmp_path: Path, before: int, after: int) -> None:
    compare(tmp_path, before, after, OTHERS)


@pytest.mark.fault(18)
@pytest.mark.nightly
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1)])
def test_every_stage_to_every_stage(tmp_path: Path, before: int, after: int) -> None:
    compare(tmp_path, before, after, moves("adamw", *product(STAGES, STAGES)))


def scales(root: str) -> dict[tuple[int, int], list[Any]]:
    """What is saved of fp16's loss scale and read, by ZeRO stage before and after; the CPU need not do fp16 well."""
    process_group.init_process_group()
    process_group.init_deepspeed()
    from deepspeed.accelerator import get_accelerator

    results = {}
    with mock.patch.object(type(get_accelerator()), "is_fp16_supported", return_value=True):
        for before, here in ((0, 0), (0, 1), (1, 0), (2, 3)):
            engine = elastic.make(before, dtype="fp16")
            elastic.update(engine, 0)
            *_, holder = scaler_holders(engine.deepspeed.optimizer)
            vars(holder).update(cur_scale=512.0, cur_iter=9, last_overflow_iter=4)
            elastic.save(engine, Path(root) / f"{before}_{here}", 1)
            other = elastic.make(here, dtype="fp16", seed=5)
            elastic.load(other, Path(root) / f"{before}_{here}")
            held: dict[str, Any] = {
                key: value for state in scaler_state(other.deepspeed.optimizer) for key, value in state.items()
            }
            results[before, here] = [held[key] for key in ("cur_scale", "cur_iter", "last_overflow_iter")]
            results[before, here].append(other.deepspeed.optimizer.loss_scale)
            engine.destroy()
            other.destroy()
    return results


@pytest.mark.fault(2, 18)
def test_the_loss_scale_of_fp16_goes_along(tmp_path: Path) -> None:
    (results,) = processes.share(scales, 1, str(tmp_path))
    assert len(results) == 4 and all(held == [512.0, 9, 4, 512.0] for held in results.values()), results
