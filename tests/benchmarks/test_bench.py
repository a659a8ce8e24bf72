"""The benchmark runs, its contestants agree, and what it compares would be refused if they did not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contestant import contestants
from benchmarks.figures import HELP, ROWS, Figures, complaints
from benchmarks.report import text
from benchmarks.run import Bench
from benchmarks.workload import BIG, SMALL, THROUGHPUT, Task
from tests.processes import HANG

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_quick_run_of_ours_and_a_bare_loop(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--rounds",
        "1",
        "--only",
        "torch",
        "--json",
        str(figures),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(figures.read_text())
    assert set(results["table"]) == {row.title for row in ROWS if row.task == "throughput"} | {HELP}
    ours, bare = (results["rounds"]["throughput"][name][0] for name in ("ours", "torch"))
    assert ours["held_out"] == pytest.approx(bare["held_out"], abs=1e-4)
    assert ours["targets"] == bare["targets"] > 0
    assert ours["mislabelled"] == 0
    assert "tokens / bare torch" in done.stdout


def a_result(task: Task, **changed: Any) -> dict[str, Any]:
    result = {
        "after_step": [5.0 + n for n in range(task.steps)],
        "prepared": 2.0,
        "losses": [9.0 - n / 10 for n in range(task.steps)],
        "tokens": [1000] * task.steps,
        "fill": 0.99,
        "targets": 500,
        "mislabelled": 0,
        "peak_mb": 900.0,
        "versions": {"torch": "2"},
        "held_out": 7.0,
    }
    return result | changed


def test_equal_results_are_comparable() -> None:
    results = {name: a_result(THROUGHPUT) for name in ("ours", "torch", "deepspeed", "trl")}
    assert complaints(THROUGHPUT, results) == []


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("torch", {"losses": [9.0 - n / 10 + 0.002 * (n == 3) for n in range(THROUGHPUT.steps)]}, "at step 4"),
        ("deepspeed", {"losses": [float("nan")] * THROUGHPUT.steps}, "at step 1"),
        ("trl", {"held_out": 7.4}, "held-out loss of 7.400"),
        ("trl", {"held_out": float("nan")}, "held-out loss of nan"),
        ("trl", {"mislabelled": 3}, "3 labels"),
        ("trl", {"after_step": [1.0]}, "took 1 steps"),
    ],
)
def test_what_cannot_be_compared_is_named(name: str, changed: dict[str, Any], message: str) -> None:
    results = {one: a_result(THROUGHPUT) for one in ("ours", "torch", "deepspeed", "trl")}
    results[name] |= changed
    (complaint,) = complaints(THROUGHPUT, results)
    assert message in complaint
    assert name in complaint


def a_bench(tmp_path: Path, **slower: float) -> Bench:
    """Three rounds in which a contestant's steps take so many seconds, one when it is not named."""
    task = THROUGHPUT
    bench = Bench(
        [task, Task(**{**vars(task), "name": "fixed"})], contestants(Path(sys.executable), tmp_path), tmp_path, 0
    )
    for of in ("throughput", "fixed"):
        bench.results[of] = {}
        for one in bench.contestants:
            after = [5 + n * slower.get(one.name, 1.0) for n in range(task.steps)]
            bench.results[of][one.name] = [a_result(task, after_step=after) for _ in range(3)]
    bench.helps = {"ours": [0.1, 0.4, 0.2], "trl": [0.4, 0.4, 0.8]}
    return bench


def test_targets_compare_ours_with_the_others(tmp_path: Path) -> None:
    figures = Figures(a_bench(tmp_path, torch=0.9, trl_packed=2.0, arctic_0_8=3.0))
    reached = {target.title: target for target in figures.targets()}
    assert reached["tokens / bare torch"].reached == pytest.approx(0.9)
    assert not reached["tokens / bare torch"].met
    assert reached["tokens / Arctic 0.8.0 packed"].reached == pytest.approx(3.0)
    assert reached["tokens / Arctic 0.8.0 packed"].met
    assert not reached["tokens / TRL packed"].met
    assert reached["prepared rows / datasets.map"].reached == 1 and reached["prepared rows / datasets.map"].met
    assert not reached["prepared rows / TRL"].met
    assert reached["--help / TRL"].reached == 0.25


def test_the_table_fits_a_wide_terminal(tmp_path: Path) -> None:
    machine = {"processor": "a processor", "cores": "2", "memory": "24 GiB", "system": "Linux"}
    printed = text(Figures(a_bench(tmp_path)), machine, rounds=3, stage=0)
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.count("MISSED") == 3


def test_models_have_the_size_that_is_said() -> None:
    assert round(BIG.parameters / 1e6, 1) == 8.6
    assert round(SMALL.parameters / 1e6, 1) == 1.1
