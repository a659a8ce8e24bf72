"""`python -m benchmarks.busy`: what a run costs on an idle machine and beside busy loops, by how its threads wait.

A run on all cores is started as a person starts it, once with the command's own settings of OpenMP, once with those of
GNU's OpenMP, which a run without settings would have. Needs a machine that nothing else runs on. A virtual machine
loses its cores to others for seconds, which moves the wall time of one run by several percent: the idle figure is of
the median step of a run.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

from benchmarks.contestant import contestants
from benchmarks.figures import Target
from benchmarks.report import target_lines
from benchmarks.run import Bench, note
from benchmarks.workload import QUICK, THROUGHPUT, Task

OPENMP = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WAITING = {"ours": {}, "default": {"GOMP_SPINCOUNT": "300000"}}
"""What is in the environment; the number is what GNU's OpenMP takes where it is told nothing."""
LOOPS = 4
"""Busy loops for each core."""
RUNS = ((0, "ours"), (0, "default"), (0, "default"), (0, "ours"), (LOOPS, "ours"))
"""The runs of a round: busy loops for each core, and how threads wait; neither is always the first of two."""


class Cost(NamedTuple):
    """What one run took."""

    step: float
    """Wall seconds of its median step."""
    cpu: float
    """CPU seconds of all its processes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds that are counted (3); one run before them warms the disk"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny task: shows that it works, measures nothing")
    arguments = parser.parse_args()
    task = QUICK if arguments.quick else replace(THROUGHPUT, steps=40)
    costs: dict[tuple[str, int], list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="arctic_training_bench_") as temporary:
        bench = Bench([task], contestants(Path(sys.executable), Path())[:1], Path(temporary), 0)
        bench.make_corpora()
        recipe = write_recipe(task, bench.folder(task))
        variables = bench.contestants[0].environment()
        environment = {name: value for name, value in variables.items() if name not in OPENMP}
        if not arguments.quick:
            run(recipe, environment)
        for number in range(1, arguments.rounds + 1):
            for loops, name in RUNS:
                with busy_loops(loops * len(os.sched_getaffinity(0))):
                    cost = run(recipe, environment | WAITING[name])
                step, cpu = cost
                note(f"round {number} {loops} loops a core, {name:<8} {step * 1e3:7.1f} ms a step, CPU {cpu:7.1f} s")
                costs.setdefault((name, loops), []).append(cost)
    print("\n".join(target_lines(targets(costs))))
    return 0


def targets(costs: dict[tuple[str, int], list[Cost]]) -> list[Target]:
    """What is promised of the costs by name and by whether there were busy loops."""

    def step(name: str) -> float:
        return median(one.step for one in costs[name, 0])

    def cpu(loops: int) -> float:
        return median(one.cpu for one in costs["ours", loops])

    return [
        Target("idle: step / OpenMP's default", step("ours") / step("default"), 1.02, at_least=False),
        Target("busy: CPU / idle CPU", cpu(LOOPS) / cpu(0), 1.5, at_least=False),
    ]


def write_recipe(task: Task, folder: Path) -> Path:
    recipe = {
        "type": "sft",
        "train_iters": task.steps,
        "seed": task.seed,
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": {
            "sources": [str(folder / "data" / "train.jsonl")],
            "max_length": task.max_length,
            "pack_samples": True,
            "cache_dir": str(folder / "cache"),
            "num_proc": 1,
        },
        "optimizer": {"lr": task.learning_rate},
        "output_dir": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that each would fill a core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(recipe: Path, environment: dict[str, str]) -> Cost:
    """The command on the recipe, on all cores."""
    metrics = recipe.parent / "run" / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    log = recipe.with_suffix(".log")
    with log.open("w") as stream:
        command = [sys.executable, "-m", "arctic_training", str(recipe)]
        started = subprocess.Popen(command, cwd=recipe.parent, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise SystemExit(f"the run failed:\n{log.read_text(errors='replace')[-2000:]}")
    steps = [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]
    return Cost(median(steps), usage.ru_utime + usage.ru_stime)


if __name__ == "__main__":
    sys.exit(main())
