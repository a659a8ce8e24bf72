"""Two runs of one recipe are equal to the bit: every loss, and every weight at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.contract.cases import recipe
from tests.contract.test_resume import losses, train


def differing(root: str, stages: tuple[int, ...]) -> list[str]:
    """The cases whose second run was not the first."""
    from arctic_training import distributed

    distributed.init()
    files, wrong = Path(root) / "files", []
    if distributed.is_main():
        recipe("sft", files)
    distributed.barrier()
    for stage in stages:
        for dtype in ("fp32", "bf16"):
            found: list[tuple[dict[int, float], dict[str, Any]]] = []
            for attempt in ("first", "second"):
                run = Path(root) / f"{stage}_{dtype}_{attempt}"
                told = recipe("sft", files, output_dir=str(run), deepspeed={"zero_optimization": {"stage": stage}})
                told["model"]["dtype"] = dtype
                ended = train(told)
                distributed.barrier()  # the main process has written its metrics
                found.append((losses(run), ended["weights"]))
            (first, weights), (second, others) = found
            assert len(first) >= 4 and weights.keys() == others.keys()
            if first != second or not all(torch.equal(weights[name], others[name]) for name in weights):
                wrong.append(f"stage {stage}, {dtype}")
    return wrong


@pytest.mark.long
@pytest.mark.fault(1)
@pytest.mark.parametrize("world", [1, 2])
def test_two_equal_runs(world: int, tmp_path: Path) -> None:
    assert processes.share(differing, world, str(tmp_path), (0, 1, 2, 3)) == [[]] * world
