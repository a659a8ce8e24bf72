"""OpenMP settings of the processes of a run: passive waiting, a share of the cores, and the user's own before all."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arctic_training.cli.main import main
from arctic_training.launch.threads import openmp_settings
from tests.processes import HANG, ROOT

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, None),
        ({"LOCAL_WORLD_SIZE": "1"}, None),
        ({"LOCAL_WORLD_SIZE": "4"}, "4"),
        ({"LOCAL_WORLD_SIZE": "32"}, "1"),
        ({"LOCAL_WORLD_SIZE": "0"}, None),
        ({"LOCAL_WORLD_SIZE": "many"}, None),
        ({"LOCAL_SIZE": "3"}, "5"),  # DeepSpeed's launcher
        ({"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "5"}, None),
        # eight tasks on two machines, which give the step 64 cores each: bound to 16 of them, and to fewer
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "64"}, "16"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "128"}, "16"),
        # not bound: all four see the 16 cores of the step
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "16"}, "4"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, "4"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "16"}, None),
    ],
)
def test_several_processes_of_a_machine_share_its_cores(
    variables: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert openmp_settings(variables) == PASSIVE | ({} if threads is None else {"OMP_NUM_THREADS": threads})


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_who_says_how_threads_wait_is_heard(name: str) -> None:
    assert openmp_settings({name: "anything"}) == {}


def ranks(folder: Path, *words: str, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """What each process of a run has in its environment, and what the run wrote to standard error."""
    (folder / "recipe.yaml").write_text("type: rank\nmodel: {name_or_path: end}\ndata: {sources: [a/b]}\n")
    shutil.copy(Path(__file__).with_name("rank.py"), folder / "train.py")
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", *OPENMP)}
    variables = {**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-m", "arctic_training", "recipe.yaml", *words]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted((folder / "ranks").glob("here_?"))], done.stderr


def test_openmp_itself_hears_of_it_in_a_run_of_one_process(tmp_path: Path) -> None:
    (rank,), stderr = ranks(tmp_path, OMP_DISPLAY_ENV="VERBOSE")
    assert rank["OMP_WAIT_POLICY"] == "PASSIVE" and rank["OMP_NUM_THREADS"] is None
    assert re.search(r"OMP_WAIT_POLICY ?= ?'PASSIVE'", stderr)  # which it prints when it is loaded


def test_the_users_settings_are_those_of_every_process(tmp_path: Path) -> None:
    started, _ = ranks(tmp_path, "--num_gpus", "2", OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="3")
    assert [[rank[name] for name in OPENMP[:3]] for rank in started] == [["3", "ACTIVE", None]] * 2


def test_a_program_that_calls_the_command_keeps_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in OPENMP:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "recipe.yaml").write_text("model: {name_or_path: some/model}\ndata: {sources: [a/b]}\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert main(["validate", str(tmp_path / "recipe.yaml")]) == 0
    assert not {*OPENMP} & os.environ.keys()
