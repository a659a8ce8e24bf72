"""`python -m benchmarks.objectives`: dpo and grpo beside TRL, on the same data in one run: CPU seconds of a step.

Round after round, each contestant trains in a process of its own, with one thread; a step's time is the median of
those after the first two. A figure is printed when the losses agree.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contestant import HERE, Contestant
from benchmarks.machine import describe
from benchmarks.run import note
from benchmarks.workload import ModelSize

SIZE = ModelSize(hidden=128, layers=9, heads=4, kv_heads=4, intermediate=512, vocabulary=49152)
"""8.6M weights, those of input and output shared."""
QUICK = ModelSize(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, vocabulary=8192)
AGREE = 1e-3
"""The largest difference of two losses of dpo, at every step."""
SAME_REWARD = 0.02
"""The largest difference of the mean rewards of grpo, over all steps: completions are random."""

SAME_TOKENS = 0.05
"""The largest share by which the tokens of their completions differ."""


@dataclass(frozen=True)
class Task:
    """An objective, and what both contestants train."""

    name: str
    target: float
    """How many times the speed of TRL is wanted."""
    rows: int
    """Pairs, or prompts, of a step."""
    steps: int = 5
    warm_up: int = 2
    model: ModelSize = SIZE
    tied: bool = True
    max_length: int = 512
    num_generations: int = 8
    max_new_tokens: int = 64
    learning_rate: float = 1e-4
    beta: float = 0.1
    seed: int = 42

    def spec(self) -> dict[str, Any]:
        llama = self.model.llama(self.max_length) | {"tie_word_embeddings": self.tied}
        return asdict(self) | {"llama": llama}


TASKS = [Task("dpo", 3.5, rows=16), Task("grpo", 3.0, rows=8, beta=0.01)]


def contestants(python: Path) -> list[Contestant]:
    """Ours, and TRL as it is installed and without gradient checkpointing, which costs time and saves memory."""
    trl = "trl_objectives.py"
    return [
        Contestant("ours", "ours", "ours_objectives.py", python),
        Contestant("trl", "TRL", trl, python, {"gradient_checkpointing": False}),
        Contestant("trl_default", "TRL as installed", trl, python, {"gradient_checkpointing": True}),
    ]


def train(one: Contestant, folder: Path, run: Path) -> dict[str, Any]:
    """Runs a contestant on the corpus in ``folder``, and returns its result."""
    run.mkdir(parents=True)
    spec = {"task": json.loads((folder / "task.json").read_text()), "folder": str(folder), "run_dir": str(run)}
    spec |= {"result": str(run / "result.json"), **one.spec}
    (run / "spec.json").write_text(json.dumps(spec))
    command = [str(one.python), str(HERE / "contestants" / one.script), str(run / "spec.json")]
    done = subprocess.run(command, cwd=run, env=one.environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{one.title} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def seconds(task: Task, result: dict[str, Any]) -> float:
    """Returns the CPU seconds of a step: the median of those after the warm-up."""
    return median(later - earlier for earlier, later in pairwise(result["after_step"][task.warm_up - 1 :]))


def complaints(task: Task, results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns why the results of a round cannot be compared; empty when they can."""
    ours = results["ours"]["losses"]
    wrong = [
        f"{task.name}: {name} took {len(one['losses'])} steps, not {task.steps}"
        for name, one in results.items()
        if len(one["losses"]) != task.steps
    ]
    for name in [] if wrong else results.keys() - {"ours"}:
        theirs = results[name]["losses"]
        if task.name == "dpo":
            apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
            if not max(apart) <= AGREE:
                at = next(n for n, gap in enumerate(apart) if not gap <= AGREE)
                wrong.append(f"dpo: the loss of step {at + 1} is {ours[at]:.5f} in ours and {theirs[at]:.5f} in {name}")
        elif not abs(sum(ours) - sum(theirs)) / task.steps <= SAME_REWARD:
            mean, other = sum(ours) / len(ours), sum(theirs) / len(theirs)
            wrong.append(f"grpo: the mean reward is {mean:.3f} in ours and {other:.3f} in {name}")
        tokens = [sum(results[one]["tokens"]) for one in ("ours", name)]
        if not abs(tokens[0] - tokens[1]) <= (0 if task.name == "dpo" else SAME_TOKENS * tokens[0]):
            wrong.append(f"{task.name}: ours trained on {tokens[0]} tokens of completions, {name} on {tokens[1]}")
    return wrong


def report(tasks: list[Task], shown: list[Contestant], times: dict[str, dict[str, list[float]]]) -> list[str]:
    """Returns the lines of the table: medians over the rounds, and of the rounds' own ratios."""
    lines = [f"{'CPU seconds a step':<24}" + "".join(f"{one.title:>18}" for one in shown)]
    lines += [
        f"{task.name:<24}" + "".join(f"{median(times[task.name][one.name]):>18.2f}" for one in shown) for task in tasks
    ]
    for task in tasks:
        for one in shown[1:]:
            ratio = median(b / a for a, b in zip(times[task.name]["ours"], times[task.name][one.name], strict=True))
            missed = "  MISSED" if one.name == "trl_default" and ratio < task.target else ""
            suffix = f", wanted {task.target:g}" if one.name == "trl_default" else ""
            lines.append(f"{task.name}: {ratio:.2f} times the speed of {one.title}{suffix}{missed}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--only", choices=[task.name for task in TASKS], help="one of the tasks")
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it works, and measures nothing")
    words = parser.parse_args()
    tasks = [task for task in TASKS if words.only in (None, task.name)]
    if words.quick:
        tasks = [Task(**{**vars(task), "model": QUICK, "max_new_tokens": 8}) for task in tasks]
    shown = contestants(Path(sys.executable))
    times: dict[str, dict[str, list[float]]] = {task.name: {one.name: [] for one in shown} for task in tasks}
    with tempfile.TemporaryDirectory(prefix="arctic_training_bench_") as temporary:
        for task in tasks:
            folder = Path(temporary) / task.name
            folder.mkdir()
            (folder / "task.json").write_text(json.dumps(task.spec()))
            corpus = [str(shown[0].python), "contestants/objectives_corpus.py", str(folder)]
            subprocess.run(corpus, cwd=HERE, env=shown[0].environment(), check=True)
            for number in range(1, words.rounds + 1):
                results = {one.name: train(one, folder, folder / f"{number}_{one.name}") for one in shown}
                for name, result in results.items():
                    times[task.name][name].append(seconds(task, result))
                    note(f"round {number} {task.name:<5}{name:<12}{times[task.name][name][-1]:7.2f} s")
                if wrong := complaints(task, results):
                    print("not comparable:", *wrong, sep="\n", file=sys.stderr)
                    return 1
    print(", ".join(describe().values()))
    print("\n".join(report(tasks, shown, times)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
