"""Processes that the command starts: they get their ranks, and end together whatever happens to one of them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.errors.types import InputError
from arctic_training.launch import launcher
from arctic_training.launch.arguments import parse
from arctic_training.launch.launcher import _exit_code, _num_processes, _Worker, _worker_environment, launch
from tests.command import alive, clean_environment, wait_for
from tests.processes import HANG, ROOT
from tests.warm_start import Command

Process = subprocess.Popen[str] | Command
Start = Callable[..., Process]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("type: rank\nmodel: {name_or_path: end}\ndata: {sources: [a/b]}\n")
    shutil.copy(Path(__file__).with_name("rank.py"), tmp_path / "train.py")
    return tmp_path


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the command in ``folder``; whatever it leaves behind is ended, and fails the test."""
    started: list[Process] = []

    def start(*words: str, new_interpreters: bool = False, **environment: str) -> Process:
        variables, outputs = clean_environment(**environment), [tmp_path / name for name in ("stdout", "stderr")]
        process: Process
        if new_interpreters:
            command = [sys.executable, "-m", "arctic_training", *words]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, **pipes)
        else:
            process = Command(words, folder, variables, *outputs)
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    left = [rank["pid"] for rank in ranks(folder) if alive(rank["pid"])]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "ranks").glob("here_?"))]


def ended(process: Process) -> tuple[int, str]:
    """Returns the exit code and standard error."""
    _, err = process.communicate(timeout=HANG)
    return process.returncode, err


def notes(folder: Path, what: str) -> list[str]:
    return [path.read_text() for path in sorted((folder / "ranks").glob(f"{what}_?"))]


def test_two_processes_are_told_who_they_are(start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    process = start("recipe.yaml", "seed=5", "--num_gpus", "2", new_interpreters=True)
    assert ended(process) == (0, "")
    first, second = ranks(folder)
    assert [rank["RANK"] for rank in (first, second)] == ["0", "1"]
    assert [rank["LOCAL_RANK"] for rank in (first, second)] == ["0", "1"]
    for rank in (first, second):
        assert (rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"], rank["MASTER_ADDR"]) == ("2", "2", "127.0.0.1")
        assert rank["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert rank["OMP_WAIT_POLICY"] == "PASSIVE"
        assert rank["parent"] == process.pid
        assert rank["argv"][1:] == ["train", "recipe.yaml", "seed=5"]
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert first["pid"] != second["pid"]


def test_one_process_is_the_command_itself(start: Start, folder: Path) -> None:
    process = start("train", "recipe.yaml")
    assert ended(process) == (0, "")
    (rank,) = ranks(folder)
    assert rank["pid"] == process.pid
    assert notes(folder, "closed") == ["False"]


def test_a_number_of_threads_that_is_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert _worker_environment(1, 2, 29500)["OMP_NUM_THREADS"] == "3"


def test_a_signal_reaches_every_process(start: Start, folder: Path) -> None:
    process = start("recipe.yaml", "model.name_or_path=wait", "--num_gpus", "2")
    wait_for(lambda: len(notes(folder, "training")) == 2)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert not [rank for rank in ranks(folder) if alive(rank["pid"])]
    assert notes(folder, "asked") == ["SIGTERM was received"] * 2
    assert notes(folder, "closed") == ["False"] * 2


def test_the_second_signal_ends_what_does_not_listen(start: Start, folder: Path) -> None:
    process = start("recipe.yaml", "model.name_or_path=deaf", "--num_gpus", "2")
    wait_for(lambda: len(notes(folder, "deaf")) == 2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert not [rank for rank in ranks(folder) if alive(rank["pid"])]


def test_processes_end_with_a_command_that_was_killed(start: Start, folder: Path) -> None:
    process = start("recipe.yaml", "model.name_or_path=deaf", "--num_gpus", "2", new_interpreters=True)
    wait_for(lambda: len(notes(folder, "deaf")) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not [rank for rank in ranks(folder) if alive(rank["pid"])])


def test_an_error_of_one_process_ends_all_and_is_told_once(start: Start, folder: Path) -> None:
    process = start("recipe.yaml", "model.name_or_path=raise", "--num_gpus", "2")
    code, err = ended(process)
    assert code == 1
    assert err.count("Traceback") == 1
    assert err.startswith("[rank 1] Traceback")
    assert err.rstrip().endswith("RuntimeError: on purpose")


def test_what_several_processes_found_is_told_as_the_first_ones(capsys: pytest.CaptureFixture[str]) -> None:
    process: Any = SimpleNamespace(returncode=3, poll=lambda: 3)
    common = {"text": "step 4: the loss is not finite", "known": True, "echo": False, "code": 3}
    workers = []
    for rank, sooner in ((0, 2.0), (1, 1.0)):
        reader, writer = os.pipe()
        os.write(writer, json.dumps({**common, "rank": rank, "time": sooner}).encode())
        os.close(writer)
        workers.append(_Worker(rank, process, reader))
    assert _exit_code(workers, workers, 0) == 3
    assert capsys.readouterr().err == "step 4: the loss is not finite\n"
    for worker in workers:
        os.close(worker.channel)


def test_what_every_process_refuses_is_told_once(start: Start) -> None:
    code, err = ended(start("recipe.yaml", "model.name_or_path=refuse", "--num_gpus", "2"))
    assert (code, err.rstrip().removeprefix("[rank 1] ")) == (2, "rows.jsonl:3: not JSON; mend the line")


def test_a_process_that_dies_without_a_word_is_named(start: Start) -> None:
    code, err = ended(start("recipe.yaml", "model.name_or_path=die", "--num_gpus", "2"))
    assert (code, err) == (137, "[rank 1] was ended by SIGKILL; the other processes were ended too\n")


def test_several_machines_are_left_to_deepspeed(start: Start, folder: Path, tmp_path: Path) -> None:
    stand_in = folder / "library" / "deepspeed" / "launcher"
    stand_in.mkdir(parents=True)
    (stand_in.parent / "__init__.py").touch()
    (stand_in / "__init__.py").touch()
    (stand_in / "runner.py").write_text(
        "import json, sys\njson.dump(sys.argv[1:], open('said.json', 'w'))\nsys.exit(3)\n"
    )
    (folder / "h.txt").write_text("one slots=4\ntwo slots=4\n")
    words = ["recipe.yaml", "seed=1", "--hostfile", "h.txt", "--num_nodes", "2", "--num_gpus", "4", "--debug"]
    path = f"{folder / 'library'}:{ROOT}"
    assert ended(start(*words, new_interpreters=True, PYTHONPATH=path))[0] == 3
    arguments = json.loads((folder / "said.json").read_text())
    place = arguments.index("--module")
    assert sorted(arguments[:place]) == sorted(["--hostfile", "h.txt", "--num_gpus", "4", "--num_nodes", "2"])
    assert arguments[place:] == [
        "--module",
        "arctic_training.launch.worker",
        "train",
        "recipe.yaml",
        "seed=1",
        "--debug",
    ]


def test_more_gpus_than_there_are_is_refused_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (_num_processes(None), _num_processes(1), _num_processes(2)) == (2, 1, 2)
    with pytest.raises(InputError, match="--num_gpus 3: this machine has 2 GPUs; expected at most 2"):
        _num_processes(3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (_num_processes(None), _num_processes(3)) == (1, 3)


@pytest.mark.parametrize(
    ("environment", "words", "where"),
    [
        ({}, [], "others"),
        ({}, ["--num_gpus", "2"], "others"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, [], "here"),  # of torchrun for one process, on a machine with more GPUs
        ({"RANK": "0", "WORLD_SIZE": "1"}, ["--num_gpus", "2"], "others"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, [], "here"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ["--num_gpus", "2"], "refused"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, [], "others"),  # a batch script, not a step
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ["--num_gpus", "2"], "others"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, [], "here"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, ["--num_gpus", "2"], "refused"),
    ],
)
def test_a_process_of_another_launcher_is_recognised(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: list[str], where: str
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = get_config({"type": "sft", "model": {"name_or_path": "a/model"}, "data": {"sources": ["some/rows"]}})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(launcher, "run", lambda config, **kwargs: 1)
    monkeypatch.setattr(launcher, "_launch_local_workers", lambda args, count: count)
    if where == "refused":
        with pytest.raises(InputError, match=r"^--num_gpus: this process is one rank of a run already"):
            launch(parse(["recipe.yaml", *words]), config)
    else:
        count = 1 if where == "here" else 2 if words else 8
        assert launch(parse(["recipe.yaml", *words]), config) == count


def test_what_another_launcher_said_of_one_process_is_not_said_of_those_that_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "MASTER_PORT": "1",
        "GROUP_RANK": "0",
        "KEPT": "yes",
    }
    for name, value in {**variables, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    worker_variables = _worker_environment(1, 2, 29500)
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_PORT": "29500", "KEPT": "yes"}
    assert {name: worker_variables.get(name) for name in place} == place
    assert not {"TORCHELASTIC_USE_AGENT_STORE", "GROUP_RANK"} & worker_variables.keys()
