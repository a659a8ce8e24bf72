"""What the processes of a run say to one another, in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.distributed import collectives, environment, process_group
from tests import processes
from tests.command import shared_memory


def talk(folder: Path) -> dict[str, Any]:
    process_group.init_process_group()
    process_group.init_process_group()  # may be called again
    rank = process_group.rank()
    received: dict[str, Any] = {
        "who": (rank, process_group.world_size(), process_group.is_main(), process_group.device().type),
        "gathered": collectives.all_gather_object({"rank": rank}),
        "broadcast": collectives.broadcast_object(f"from {rank}", source=process_group.world_size() - 1),
        "sum": collectives.all_reduce(torch.tensor([rank + 1, 10])).tolist(),
    }
    with collectives.main_process_first() as first:
        if first:
            time.sleep(0.3)
            (folder / "prepared").write_text("once")
        received["main first"] = (first, (folder / "prepared").read_text())
    with collectives.main_process_first(each_machine=True) as first:
        received["each machine"] = first
    process_group.destroy_process_group()
    received["left"] = process_group.is_initialized()
    return received


@pytest.mark.parametrize("world", [1, 2])
def test_every_process_hears_the_same(tmp_path: Path, world: int) -> None:
    for rank, received in enumerate(processes.run(talk, world, tmp_path)):
        assert received["who"] == (rank, world, rank == 0, "cpu")
        assert received["gathered"] == [{"rank": n} for n in range(world)]
        assert received["broadcast"] == f"from {world - 1}"
        assert received["sum"] == [sum(range(1, world + 1)), 10 * world]
        assert received["main first"] == (rank == 0, "once")
        assert received["each machine"] == (rank == 0)
        assert not received["left"]


def fail_first() -> str:
    process_group.init_process_group()
    try:
        with collectives.main_process_first() as first:
            if first:
                raise OSError("no room")
            return "went on"
    except (OSError, RuntimeError) as error:
        return str(error)


def test_the_others_do_not_wait_for_a_first_that_failed() -> None:
    assert processes.share(fail_first, 2) == ["no room", "the first process failed; its own message says why"]


def on_two_machines(fails: bool) -> Any:
    """Each process is the first of a machine of its own, and the second machine takes its time."""
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = "0"
    process_group.socket.gethostname = lambda: f"machine{rank}"  # type: ignore[attr-defined]
    process_group.init_process_group()
    since = time.monotonic()
    try:
        with collectives.main_process_first(each_machine=True) as first:
            time.sleep(rank)
            if fails and rank:
                raise OSError("no room")
        return first, time.monotonic() - since
    except (OSError, RuntimeError) as error:
        return str(error)


def test_machines_wait_for_one_another() -> None:
    (first, waited), (other, took) = processes.run(on_two_machines, 2, False)
    assert first and other and waited > 0.9 and took > 0.9


def test_a_machine_that_fails_is_noticed_by_the_others() -> None:
    assert processes.run(on_two_machines, 2, True) == ["the first process failed; its own message says why", "no room"]


@pytest.mark.parametrize(("seen", "tasks", "number"), [(1, "2", 0), (2, "2", 1), (1, "1", 1)])
def test_a_task_with_a_gpu_of_its_own_sees_only_that(
    monkeypatch: pytest.MonkeyPatch, seen: int, tasks: str, number: int
) -> None:
    variables = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": tasks}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # as it may be of a run in this process
    monkeypatch.setattr(process_group, "_local_rank", None)
    monkeypatch.setattr(environment, "_original", {})  # a run of another test may not have ended
    monkeypatch.setenv("LOCAL_SIZE", "2")
    process_group._export_env()
    assert process_group.device() == torch.device("cuda", number)
    assert os.environ["LOCAL_RANK"] == str(number) and process_group.local_rank() == 1
    process_group.restore_environment()
    assert os.environ["LOCAL_RANK"] == "1"


@pytest.mark.fault(24)
def test_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert shared_memory(number for pids in processes.run(use_deepspeed, 2) for number in pids) == []
    assert os.listdir(tmp_path) == []


def use_deepspeed() -> tuple[str, ...]:
    """Returns the numbers that are in the names of what torch and DeepSpeed put into shared memory."""
    import deepspeed

    process_group.init_deepspeed()
    collectives.all_reduce(torch.ones(1))
    assert deepspeed.comm.get_world_size() == process_group.world_size()
    threads = len(os.listdir("/proc/self/task"))
    process_group.destroy_process_group()
    # threads of a process group that outlive it abort the process at its end
    assert len(os.listdir("/proc/self/task")) < threads
    return str(os.getpid()), os.environ["MASTER_PORT"]


def test_one_process_needs_no_port_and_no_variable() -> None:
    script = (
        "import socket, torch\n"
        "from arctic_training.distributed import collectives, process_group\n"
        "process_group.init_deepspeed()\n"
        "process_group.barrier()\n"
        "print(collectives.all_gather_object(1), process_group.world_size())\n"
        "process_group.destroy_process_group()\n"
        "process_group.init_deepspeed()\n"
        "process_group.destroy_process_group()\n"
    )
    kept = ("PATH", "HOME", "LANG")
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    variables |= {"PYTHONPATH": str(processes.ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=variables,
        capture_output=True,
        text=True,
        timeout=processes.HANG,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1] 1\n", "")


def test_the_harness_kills_what_does_not_end() -> None:
    with pytest.raises(AssertionError, match="sleep failed in 2 processes"):
        processes.run(sleep, 2, timeout=3)


def take_a_turn_alone() -> None:
    collectives._num_turns += int(os.environ["RANK"])


def test_the_harness_names_who_leaves_processes_that_count_differently() -> None:
    with pytest.raises(AssertionError, match=r"take_a_turn_alone leaves .*: \(\(0, 0\), \(1, 0\)\)"):
        processes.run(take_a_turn_alone, 2)


def sleep() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(2 * processes.HANG)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node1", "node1"), ("gpu[03-07,12],login", "gpu03"), ("gpu[5]", "gpu5"), ("a-b,c", "a-b"), ("r[1,4]x,b", "r1x")],
)
def test_the_first_machine_of_a_slurm_list(hosts: str, first: str) -> None:
    assert environment.first_slurm_host(hosts) == first


def test_slurm_says_who_we_are_only_in_a_step_of_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # as it may be of a run in this process
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert (process_group.rank(), process_group.world_size()) == (0, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert (process_group.rank(), process_group.local_rank(), process_group.world_size()) == (5, 1, 8)
    monkeypatch.setenv("RANK", "2")
    assert process_group.rank() == 2
