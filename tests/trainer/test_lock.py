"""Of two runs in one folder the second is refused; a lock whose holder is gone keeps nobody out."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training.errors.types import InputError
from arctic_training.logging import logger
from arctic_training.trainer.lock import LOCK, Lock
from tests import command, processes

HOLD = """
import sys, time
from pathlib import Path
from arctic_training.trainer.lock import Lock
lock = Lock([Path(sys.argv[1])])
print("held", flush=True)
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    command_line = [sys.executable, "-c", HOLD + "time.sleep(3600)", str(folder)]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        Lock([folder])
    return str(refused.value)


@pytest.mark.fault(23, 27)
def test_it_is_held_as_long_as_the_process_lives(tmp_path: Path, messages: list[str]) -> None:
    folder = tmp_path / "run"
    with holder(folder) as other:
        text = refusal(folder)
        assert f"another run is using this folder: process {other.pid} on {os.uname().nodename}, since 2" in text
        assert "output_dir" in text
        os.utime(folder / LOCK, (0, 0))  # clocks do not matter
        (tmp_path / "link").symlink_to(folder)
        assert str(other.pid) in refusal(tmp_path / "link")
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (folder / LOCK).exists()
    lock = Lock([folder])
    assert messages[-1].startswith(f"{folder}: took over the lock of process {other.pid} on ")
    lock.release()
    assert not folder.is_dir() or not list(folder.iterdir())


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    "text", [f"process {os.getppid()} on here, since 1999-01-01 00:00:00\n", "", "\xff\x00nonsense"]
)
def test_a_lock_that_nobody_holds_is_taken_over_whatever_it_says(tmp_path: Path, text: str) -> None:
    """Its process number may be another process's by now."""
    (tmp_path / LOCK).write_text(text, encoding="latin-1")
    os.utime(tmp_path / LOCK, (4e9, 4e9))  # of a time to come
    lock = Lock([tmp_path])
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(23)
def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    with holder(tmp_path / "saved"):
        with pytest.raises(InputError, match="saved: another run"):
            Lock([tmp_path / "new" / "run", tmp_path / "saved"])
        assert [one.name for one in tmp_path.iterdir()] == ["saved"]


@pytest.mark.fault(23)
def test_many_that_come_and_go_are_never_two_at_a_time(tmp_path: Path) -> None:
    """Eight processes take turns; the one that holds the folder is alone in it, though each removes the lock file."""
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            os._exit(take_turns(tmp_path / "run", tmp_path / "inside"))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


def take_turns(folder: Path, inside: Path) -> int:
    """Returns 1 when another process held the lock at the same time, 2 when this one never got it."""
    logger.remove()
    turns, end = 0, time.monotonic() + processes.HANG
    while turns < 20 and time.monotonic() < end:
        try:
            lock = Lock([folder])
        except InputError:
            continue
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            os.unlink(inside)
        except FileExistsError:
            return 1
        lock.release()
        turns += 1
    return 0 if turns == 20 else 2


@pytest.mark.fault(23)
def test_a_second_trainer_of_the_same_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    first = Lock([tmp_path / "run", tmp_path / "saved"])
    (tmp_path / "link").symlink_to(tmp_path / "saved")
    for folder in ("saved", "link"):
        assert "another trainer of this process is using this folder" in refusal(tmp_path / folder)
    with pytest.raises(InputError):
        Lock([tmp_path / "new", tmp_path / "run"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "run", "saved"]
    tried = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(processes.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"another run is using this folder: process {os.getpid()} " in tried.stderr  # the first still holds it
    first.release()
    Lock([tmp_path / "run"]).release()
    Lock([tmp_path / "run"])  # nobody has it any more
    Lock([tmp_path / "run"]).release()


def take(folder: str) -> str:
    from arctic_training.distributed import process_group
    from arctic_training.errors.types import InputError
    from arctic_training.trainer.lock import Lock

    process_group.init_process_group()
    try:
        Lock([Path(folder)]).release()
    except InputError as error:
        return str(error)
    return "held"


@pytest.mark.fault(23)
def test_every_process_of_the_second_run_learns_of_it(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        first, second = processes.share(take, 2, str(tmp_path))
        assert first == second and f"process {other.pid} on" in first
    assert processes.share(take, 2, str(tmp_path)) == ["held", "held"]


@pytest.mark.fault(7)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o ro,size=100k tmpfs {tmp_path} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        assert refusal(tmp_path / "run") == f"{tmp_path / 'run'}: cannot be written: Read-only file system"
    finally:
        os.system(f"umount {tmp_path}")


@pytest.mark.fault(23, 27)
def test_the_command_is_refused_where_a_run_is_and_goes_on_where_one_was_killed(
    tmp_path: Path, tiny_model: Path, tiny_chats: Path
) -> None:
    recipe: dict[str, Any] = {
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "max_length": 256, "cache_dir": str(tmp_path / "cache")},
        "epochs": 2000,
        "checkpoint": {"type": "deepspeed", "save_every_n_steps": 5, "keep_last": 2, "auto_resume": True},
    }
    folder = tmp_path / "one"
    with command.Run(folder, recipe) as first:
        first.reach(6)
        held = (folder / "runs" / "recipe" / LOCK).read_text()
        assert held.startswith(f"process {first.process.pid} on ")
        (folder / "again").mkdir()
        (folder / "again" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run_folder = str(folder / "runs" / "recipe")
        for words in ([f"output_dir={run_folder}"], [f"checkpoint.output_dir={run_folder}/checkpoints/deepspeed"]):
            second = command.execute(folder / "again", "recipe.yaml", *words)
            assert second.returncode == 2
            assert f"another run is using this folder: {held.strip()}" in second.stderr
            assert "Traceback" not in second.stderr
            assert os.listdir(folder / "again") == ["recipe.yaml"]
        assert (folder / "runs" / "recipe" / LOCK).read_text() == held
        before = len(first.records())
        command.wait_for(lambda: len(first.records()) > before, lambda: first.stderr)  # unharmed
        os.killpg(first.process.pid, signal.SIGKILL)
        first.process.wait()
    third = command.execute(folder, "recipe.yaml", f"exit_iteration={first.records()[-1]['step'] + 2}")
    assert third.returncode == 0, third.stderr
    log = (folder / "runs" / "recipe" / "logs" / "rank_0.log").read_text()
    assert f"took over the lock of {held.strip()}, which ended" in log
    assert "resumed from" in log
    assert not (folder / "runs" / "recipe" / LOCK).exists()
