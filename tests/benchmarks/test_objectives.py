"""The benchmark of dpo and grpo runs, and refuses results that cannot be compared."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.objectives import TASKS, Task, complaints, contestants, report, seconds
from tests.processes import HANG

ROOT = Path(__file__).parents[2]
DPO, GRPO = TASKS


def a_result(task: Task, step: float = 1.0, **changed: Any) -> dict[str, Any]:
    losses = [0.7 - n / 100 for n in range(task.steps)]
    return {"after_step": [step * n for n in range(task.steps)], "losses": losses, "tokens": [100]} | changed


def test_an_updates_time_is_the_median_after_the_warm_up() -> None:
    assert seconds(DPO, a_result(DPO, after_step=[9.0, 18.0, 19.0, 20.0, 25.0])) == 1


@pytest.mark.parametrize(
    ("task", "changed", "complaint"),
    [
        (DPO, {}, ""),
        (GRPO, {}, ""),
        (DPO, {"losses": [0.7, 0.692, 0.68, 0.67, 0.66]}, "the loss of step 2 is 0.69000 in ours and 0.69200 in trl"),
        (DPO, {"losses": [float("nan")] * 5}, "the loss of step 1"),
        (DPO, {"losses": [0.7]}, "trl took 1 steps, not 5"),
        (DPO, {"tokens": [101]}, "ours trained on 100 tokens of completions, trl on 101"),
        (GRPO, {"tokens": [104]}, ""),
        (GRPO, {"tokens": [110]}, "trl on 110"),
        (GRPO, {"losses": [0.75] * 5}, "the mean reward is 0.680 in ours and 0.750 in trl"),
    ],
)
def test_results_that_cannot_be_compared_are_named(task: Task, changed: dict[str, Any], complaint: str) -> None:
    results = {"ours": a_result(task), "trl": a_result(task, **changed), "trl_default": a_result(task)}
    reasons = complaints(task, results)
    assert len(reasons) == bool(complaint)
    assert complaint in "".join(reasons)


def test_the_report_says_which_target_is_missed() -> None:
    times = {"ours": [1.0, 2.0, 1.0], "trl": [3.0, 6.0, 9.0], "trl_default": [3.1, 6.2, 3.0]}
    lines = report(list(TASKS), contestants(Path("python")), {"dpo": times, "grpo": times})
    assert lines[1].split() == ["dpo", "1.00", "6.00", "3.10"]
    assert "dpo: 3.10 times the speed of TRL as installed, wanted 3.5  MISSED" in lines
    assert "grpo: 3.10 times the speed of TRL as installed, wanted 3" in lines


@pytest.mark.nightly
def test_a_quick_run() -> None:
    command = [sys.executable, "-m", "benchmarks.objectives", "--quick", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times the speed of TRL" in done.stdout
