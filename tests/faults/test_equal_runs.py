"""Two runs of one recipe are equal to the bit: every loss, and every weight at the end."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from arctic_training.distributed import process_group
from arctic_training.testing.runs import Metrics, build, final_state, first_difference
from tests import processes
from tests.contract.cases import recipe
from tests.covering import covering


def difference(root: str, stage: int, dtype: str) -> str:
    """Trains twice; returns what differs first in the second run, empty when nothing does."""
    process_group.init_process_group()
    files = Path(root) / "files"
    if process_group.is_main():
        recipe("sft", files)
    process_group.barrier()
    runs: list[tuple[Metrics, dict[str, Any]]] = []
    for attempt in ("first", "second"):
        settings = recipe("sft", files, deepspeed={"zero_optimization": {"stage": stage}})
        settings["model"]["dtype"] = dtype
        metrics = Metrics()
        trainer = build(settings, (), {"output_dir": str(Path(root) / attempt)})
        metrics.listen(trainer)
        trainer.train()
        runs.append((metrics, final_state(trainer)))
        trainer.close()
    assert len(runs[0][0]) >= 4
    return first_difference(*runs)


@pytest.mark.fault(1)
@pytest.mark.parametrize(("stage", "dtype", "world"), covering(list(product(range(4), ("fp32", "bf16"), (1, 2)))))
def test_two_equal_runs(stage: int, dtype: str, world: int, tmp_path: Path) -> None:
    assert processes.share(difference, world, str(tmp_path), stage, dtype) == [""] * world
