"""A checkpoint goes on on another number of processes and at another ZeRO stage, with the same losses."""

from pathlib import Path
from typing import Any

import pytest

from arctic_training import distributed
from tests import processes
from tests.checkpoint import elastic

STAGES = (0, 1, 2, 3)
BEFORE, AFTER = 3, 4


def begin(root: str, cases: list[tuple[int, str, str]]) -> dict[Any, Any]:
    """Train, save, and train on: the losses after the checkpoint, and the weights at it."""
    distributed.init()
    told = {}
    for stage, optimizer, dtype in cases:
        engine = elastic.make(stage, optimizer, dtype)
        for number in range(BEFORE):
            elastic.update(engine, number)
        elastic.save(engine, Path(root) / f"{stage}_{optimizer}_{dtype}", BEFORE)
        saved = elastic.whole(engine)
        losses = [elastic.update(engine, number) for number in range(BEFORE, BEFORE + AFTER)]
        told[stage, optimizer, dtype] = losses, saved, elastic.whole(engine)
        engine.destroy()
    return told


def go_on(root: str, cases: list[tuple[int, int, str, str]]) -> dict[Any, Any]:
    distributed.init()
    told = {}
    for there, here, optimizer, dtype in cases:
        engine = elastic.make(here, optimizer, dtype, seed=5)
        elastic.update(engine, 99)  # loading over an engine that was used must do too
        number = elastic.load(engine, Path(root) / f"{there}_{optimizer}_{dtype}")
        saved = elastic.whole(engine)
        losses = [elastic.update(engine, number + n) for n in range(AFTER)]
        told[there, here, optimizer, dtype] = losses, saved, elastic.whole(engine)
        engine.destroy()
    return told


def far(here: dict[str, Any], there: dict[str, Any]) -> float:
    assert here.keys() == there.keys()
    return max(float((here[name].float() - there[name].float()).abs().max()) for name in here)


def compare(root: Path, before: int, after: int, moves: list[tuple[int, int, str, str]]) -> None:
    begun = processes.share(begin, before, str(root), sorted({(there, *rest) for there, _, *rest in moves}))[0]
    for told in processes.share(go_on, after, str(root), moves):
        for (there, here, *rest), (losses, saved, last) in told.items():
            expected, weights, end = begun[(there, *rest)]
            what = f"stage {there} on {before} to stage {here} on {after}, {rest}"
            assert far(saved, weights) == 0, what
            assert losses == pytest.approx(expected, abs=1e-6 if rest[1] == "fp32" else 2e-2), what
            assert far(last, end) < (1e-5 if rest[1] == "fp32" else 2e-2), what


EVERY = [(there, here, "adamw", "fp32") for there in STAGES for here in STAGES]


@pytest.mark.fault(18)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_stage_on_every_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    compare(tmp_path, before, after, EVERY)
