"""Save, load and go on: the same bits as a run that was never interrupted."""

from pathlib import Path

import pytest
import torch

from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointConfig, DeepSpeedCheckpointEngine
from arctic_training.distributed import process_group
from arctic_training.state import Progress
from tests import processes
from tests.engine import small


def seed() -> None:
    torch.manual_seed(7 + process_group.rank())


def one_case(folder: Path, stage: int, dtype: str, steps: int) -> list[str]:
    """What differs between a run of five updates and one that was saved after two and gone on with elsewhere."""
    progress = Progress()
    view, state = small.run_of(folder, progress)
    config = DeepSpeedCheckpointConfig(output_dir=folder)
    engine = small.make(stage, dtype, steps)
    seed()
    losses, lrs = [], []
    for update in range(5):
        if update == 2:
            progress.step, progress.sample_index = 2, 2 * steps
            assert DeepSpeedCheckpointEngine(view, config)().save({"model": engine}, state) is not None
        losses += small.window(engine, update * steps, max(1, steps - update % 2), steps)
        lrs.append(engine.last_lr)
    expected = small.everything(engine)
    counts = (engine.global_steps, engine.deepspeed.global_samples, engine.deepspeed.lr_scheduler.state_dict())
    engine.destroy()

    again = Progress()
    view, state = small.run_of(folder, again)
    torch.manual_seed(999)
    other = small.make(stage, dtype, steps, seed=5)  # other weights, so that nothing is equal but by loading
    small.window(other, 77, 1, steps)  # loading over an engine that was used must do too
    DeepSpeedCheckpointEngine(view, config)().load({"model": other}, state)
    wrong = [] if (again.step, again.sample_index) == (2, 2 * steps) else [f"progress {again}"]
    relosses, relrs = [], []
    for update in range(again.step, 5):
        relosses += small.window(other, update * steps, max(1, steps - update % 2), steps)
        relrs.append(other.last_lr)
    if relosses != losses[-len(relosses) :] or relrs != lrs[2:]:
        wrong.append(f"losses {losses} then {relosses}, rates {lrs} then {relrs}")
    recounts = (other.global_steps, other.deepspeed.global_samples, other.deepspeed.lr_scheduler.state_dict())
    if counts != recounts:
        wrong.append(f"counts {counts} then {recounts}")
    wrong += small.differing(small.everything(other), expected)
    other.destroy()
    return wrong


def every_case(folder: Path) -> dict[str, list[str]]:
    process_group.init_process_group()
    results = {}
    for stage in small.STAGES:
        for dtype, steps in (("fp32", 1), ("fp32", 3), ("bf16", 2)):
            case = f"ZeRO {stage}, {dtype}, accumulation {steps}"
            results[case] = one_case(folder / case.replace(" ", "_"), stage, dtype, steps)
    return results


@pytest.mark.fault(2)
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path: Path, world: int) -> None:
    for rank, results in enumerate(processes.share(every_case, world, tmp_path)):
        assert len(results) == 12
        assert {f"rank {rank}, {case}": wrong for case, wrong in results.items() if wrong} == {}
