"""`python -m benchmarks.costs`: what the small parts cost, in CPU seconds and megabytes, beside what they may cost.

The inputs are those of the tests, which count calls and bytes, and bound no time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contestant import ROOT
from benchmarks.figures import Target
from benchmarks.report import target_lines

HOSTILE = """
import io, json, re, sys, time
from contextlib import redirect_stderr
from arctic_training.cli.main import main
results = []
for name in sys.argv[1:]:
    began = time.process_time()
    with redirect_stderr(io.StringIO()):
        main(["validate", name])
    status = open("/proc/self/status").read()
    results.append([time.process_time() - began, int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024])
print(json.dumps(results))
"""


def main() -> int:
    print("\n".join(target_lines(Target(*one, at_least=False) for one in measured())))
    return 0


def measured() -> Iterator[tuple[str, float, float]]:
    """What was measured, what it costs, and what it may cost."""
    with tempfile.TemporaryDirectory(prefix="arctic_training_bench_") as folder:
        yield "--help, s", helping(Path(folder)), 0.1
        yield "validate - import torch, s", validating(Path(folder)), 0.6
        yield "preview - process-data of 1,000 chats, s", previewing(Path(folder)), 1.0
        seconds, megabytes = hostile(Path(folder))
        yield "worst hostile recipe, s", seconds, 1.0
        yield "all hostile recipes, MB", megabytes, 200.0
    yield from packing()
    yield from tokenizing()
    from arctic_training.distributed.heartbeat import record_heartbeat

    yield "progress display, ms of a small step", displaying(), 0.2
    yield "sign of life, us", 10 * seconds_of(lambda: [record_heartbeat("step") for _ in range(100_000)]), 5.0


def seconds_of(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def python(folder: Path, *words: str) -> tuple[float, str]:
    """The CPU seconds of a process of its own, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    printed = started.stdout.read()
    _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit code {started.returncode}")
    return usage.ru_utime + usage.ru_stime, printed


def helping(folder: Path) -> float:
    return min(python(folder, "-m", "arctic_training", "--help")[0] for _ in range(5))


def validating(folder: Path) -> float:
    (folder / "recipe.yaml").write_text("model: {name_or_path: some/model}\ndata: {sources: [a/b]}\n")
    command = ("-m", "arctic_training", "validate", "recipe.yaml")
    return min(python(folder, *command)[0] - python(folder, "-c", "import torch")[0] for _ in range(5))


def previewing(folder: Path) -> float:
    """What the preview of chats costs beyond their preparation, both with an empty cache."""
    from tests import tiny

    tiny.save_model(folder / "model")
    tiny.save_chats(folder / "chats.jsonl", 1_000)
    (folder / "recipe.yaml").write_text(
        "model: {name_or_path: model}\ndata: {sources: [chats.jsonl], max_length: 512}\n"
    )

    def cost(name: str, round_: int) -> float:
        cache = f"data.cache_dir={folder / f'cache-{name}-{round_}'}"
        return python(folder, "-m", "arctic_training", name, "recipe.yaml", cache)[0]

    return min(cost("preview", number) - cost("process-data", number) for number in range(3))


def hostile(folder: Path) -> tuple[float, float]:
    """The seconds of the worst, and the memory that all take beside what a harmless one does."""
    from tests.bad_inputs.case import sft
    from tests.bad_inputs.test_hostile import TEXTS, VALUES

    texts = [sft() + "seed: x\n", *TEXTS.values(), *VALUES.values()]
    for number, text in enumerate(texts):
        (folder / f"{number}.yaml").write_text(text)
    _, printed = python(folder, "-c", HOSTILE, *(f"{number}.yaml" for number in range(len(texts))))
    (_, loaded), *results = json.loads(printed)
    return max(seconds for seconds, _ in results), max(memory for _, memory in results) - loaded


def packing() -> Iterator[tuple[str, float, float]]:
    import numpy as np

    from arctic_training.data.batching.packing import best_fit
    from tests.bad_inputs.test_any_input import LENGTHS

    lengths = np.clip(np.random.default_rng(0).lognormal(6.0, 1.0, 50_000), 4, 8192).astype(int)
    yield "50,000 chats packed, s", seconds_of(lambda: best_fit(lengths, 8192)), 0.5
    yield "worst lengths packed, s", max(seconds_of(partial(best_fit, *one)) for one in LENGTHS.values()), 5.0


def tokenizing() -> Iterator[tuple[str, float, float]]:
    from tests.bad_inputs.test_any_input import dialogue
    from tests.tokenizer.test_lexer import LONG, lexer_of_words, long_text

    yield "dialogue of 200 turns, s", seconds_of(lambda: dialogue(200)), 5.0
    readers = [partial(*long_text(piece, size)) for piece in LONG for size in (0, 3)]
    yield "worst 200,000 characters read, s", max(map(seconds_of, readers)), 2.0
    yield "lexer of 42,000 words made, s", seconds_of(lambda: lexer_of_words(2_000)), 5.0


def displaying() -> float:
    """The milliseconds of a step of 20 ms that is logged: its numbers, and its share of a bar drawn once a second."""
    from rich.console import Console

    from arctic_training.display import watch
    from arctic_training.display.activity import activity
    from arctic_training.display.bar import Bar
    from arctic_training.tracker.console import ConsoleConfig, ConsoleTracker

    names = ("loss", "grad_norm", "lr", "epoch", "targets_per_second", "tokens_per_second", "seconds", "data_seconds")
    values = dict.fromkeys((*names, "mfu", "peak_memory", "peak_host_memory", "num_tokens"), 0.123456)
    tracker, steps, draws = ConsoleTracker(ConsoleConfig(type="console", every=0)), 10_000, 200
    with open(os.devnull, "w") as nowhere, activity(watch.RUN, steps) as one:
        bar = Bar(Console(file=nowhere, force_terminal=True, width=80))
        bar.start()

        def log() -> None:
            for one.done in range(steps):
                tracker.log(values, one.done)

        step = seconds_of(log) / steps
        bar.numbers = {name: f"{value:.4f}" for name, value in values.items()}
        draw = seconds_of(lambda: [bar.refresh() for _ in range(draws)]) / draws
        bar.stop()
    return 1000 * (step + 0.02 * draw)


if __name__ == "__main__":
    sys.exit(main())
