"""A run that is killed again and again, at any moment, and started again with the same command: to the bit the same."""

import hashlib
import itertools
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training.checkpoint import folder as disk
from tests.contract.cases import recipe
from tests.forked import Run

Recipe = dict[str, Any]


def zero(stage: int) -> Recipe:
    return {"deepspeed": {"zero_optimization": {"stage": stage}}}


CASES: dict[str, tuple[str, int, Recipe]] = {
    "sft at stage 0": ("sft", 1, zero(0)),
    "sft in bf16 at stage 1, accumulation 4": ("sft", 1, {**zero(1), "gradient_accumulation_steps": 4, "bf16": True}),
    "sft with two loader workers": ("sft", 1, {**zero(2), "data.dl_num_workers": 2}),
    "sft packed at stage 3": ("sft", 1, {**zero(3), "data.pack_samples": True}),
    "sft of a stream": ("sft", 1, {"streaming": True, "train_iters": 10}),
    "causal at stage 2": ("causal", 1, zero(2)),
    "dpo at stage 0": ("dpo", 1, zero(0)),
    "grpo of a stream, two iterations": ("grpo", 1, {"streaming": True, "train_iters": 10, "num_iterations": 2}),
    "gan, with its EMA, saved beside training": ("gan", 1, {**zero(0), "async": True}),
    "sft of two processes at stage 3": ("sft", 2, zero(3)),
    "grpo of two processes at stage 3": ("grpo", 2, zero(3)),
    "dpo of two processes that share sequences": ("dpo", 2, {**zero(2), "sequence_parallel_size": 2}),
    "packed stream in bf16 of two processes": (
        "sft",
        2,
        {"streaming": True, "train_iters": 10, "bf16": True, "data.pack_samples": True},
    ),
    "ppo at stage 1": ("ppo", 1, zero(1)),
}


def written(name: str, files: Path, run: Path, more: Recipe, checkpoint: str = "deepspeed") -> Path:
    """A recipe that saves after every other update, at a place of its own."""
    settings = recipe(name, files, output_dir=str(run))
    more = dict(more)
    if more.pop("bf16", False):
        settings["model"]["dtype"] = "bf16"
    beside = bool(more.pop("async", False))
    if more.pop("streaming", False):
        settings["data"]["sources"] = [{"name_or_path": settings["data"]["sources"][0], "streaming": True}]
        settings["data"]["stream_buffer"] = 4
    for key, value in more.items():
        section, _, last = key.rpartition(".")
        (settings[section] if section else settings)[last] = value
    settings["checkpoint"] = {
        "type": checkpoint,
        "auto_resume": True,
        "async": beside,
        "save_every_n_steps": 2,
        "save_end_of_training": True,
    }
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def losses(run: Path) -> dict[int, set[float]]:
    """Returns every loss that was ever logged for each step."""
    logged: dict[int, set[float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "loss" in values:
            logged.setdefault(values["step"], set()).add(values["loss"])
    return logged


def sums(run: Path, checkpoint: str = "deepspeed") -> dict[str, str]:
    """The SHA-256 of every tensor file of the last checkpoint, and of all else in it."""
    root = run / "checkpoints" / checkpoint
    last = disk.step_folder(root, disk.list_steps(root)[-1])
    return {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in disk.list_files(last)}


def first_update(run: Run, metrics: Path) -> bool:
    """Waits for the next step that is logged; returns whether one was before the run ended."""
    before = metrics.stat().st_size if metrics.exists() else 0
    while not run.wait(0.002):
        if metrics.exists() and metrics.stat().st_size > before:
            return True
    return False


def killed_until_done(name: str, world: int, more: Recipe, folder: Path, *, kills: int, seed: int) -> int:
    """Returns how often a run was killed whose losses and whose last checkpoint are those of one that was not."""
    draw = random.Random(seed)
    folder.mkdir(exist_ok=True)
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    with Run([str(written(name, folder / "files", undisturbed, more))], folder / "log", world) as run:
        first_update(run, undisturbed / "metrics.jsonl")
        began = time.monotonic()
        assert run.wait(), run.output()
        assert not any(run.codes), run.output()
        between_kills = (time.monotonic() - began) / kills
    command = [str(written(name, folder / "files", disturbed, more))]
    killed = 0
    for attempt in itertools.count():
        assert attempt < kills + 20, "the run does not come to its end"
        with Run(command, folder / f"log_{attempt}", world) as run:
            if killed < kills:
                if draw.random() < 0.8:  # else as likely before the first update as after it
                    first_update(run, disturbed / "metrics.jsonl")
                if not run.wait(draw.uniform(0, between_kills)):
                    run.kill()
                    killed += 1
                    continue
            assert run.wait(), run.output()
            assert not any(run.codes), run.output()
        if killed:
            break
        shutil.rmtree(disturbed)  # it was over before: the machine has less to do than a moment ago
        between_kills /= 2
    assert losses(disturbed) == losses(undisturbed)
    assert all(len(values) == 1 for values in losses(disturbed).values())
    assert sums(disturbed) == sums(undisturbed)
    return killed


@pytest.mark.fault(3)
def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    assert killed_until_done("sft", 1, zero(0), tmp_path, kills=2, seed=1)


OFTEN = {
    "sft packed at stage 3",
    "gan, with its EMA, saved beside training",
    "grpo of two processes at stage 3",
    "dpo of two processes that share sequences",
    "packed stream in bf16 of two processes",
}
"""Cases of every test run, with every trainer but one, every stage but one and either type."""


@pytest.mark.fault(2, 3)
@pytest.mark.parametrize(
    "case", [pytest.param(one, marks=[] if one in OFTEN else pytest.mark.nightly) for one in CASES]
)
def test_whatever_is_trained(case: str, tmp_path: Path) -> None:
    name, world, more = CASES[case]
    killed = killed_until_done(name, world, more, tmp_path, kills=3, seed=list(CASES).index(case))
    assert killed, "the run was over before it could be killed"
