"""Two runs of one recipe are equal to the bit: every loss, and every weight at the end."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.contract.cases import recipe
from tests.contract.test_resume import losses, train
from tests.covering import covering


def differing(root: str, stage: int, dtype: str) -> list[str]:
    """Trains twice; returns what of the second run is not that of the first."""
    from arctic_training.distributed import process_group

    process_group.init_process_group()
    files = Path(root) / "files"
    if process_group.is_main():
        recipe("sft", files)
    process_group.barrier()
    runs: list[tuple[dict[int, float], dict[str, Any]]] = []
    for attempt in ("first", "second"):
        run = Path(root) / attempt
        settings = recipe("sft", files, output_dir=str(run), deepspeed={"zero_optimization": {"stage": stage}})
        settings["model"]["dtype"] = dtype
        weights = train(settings)["weights"]
        process_group.barrier()  # the main process has written its metrics
        runs.append((losses(run), weights))
    (first, weights), (second, others) = runs
    assert len(first) >= 4 and weights.keys() == others.keys()
    unequal = [name for name in weights if not torch.equal(weights[name], others[name])]
    return unequal if first == second else ["losses", *unequal]


@pytest.mark.fault(1)
@pytest.mark.parametrize(("stage", "dtype", "world"), covering(list(product(range(4), ("fp32", "bf16"), (1, 2)))))
def test_two_equal_runs(stage: int, dtype: str, world: int, tmp_path: Path) -> None:
    assert processes.share(differing, world, str(tmp_path), stage, dtype) == [[]] * world
