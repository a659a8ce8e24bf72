"""However a run is ended, it ends soon with one message and its exit code, and leaves no process behind."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import Run, alive, descendants, shared_memory, wait_for
from tests.contract.cases import recipe

RESUMABLE = {"type": "deepspeed", "auto_resume": True}
"""It says of no update that it is saved: a run that is asked to stop saves all the same."""


def endless(folder: Path, name: str = "gan", **more: Any) -> dict[str, Any]:
    """A run of small updates without an end that a test would see."""
    settings = recipe(name, folder / "files", train_iters=10_000_000, **more)
    return {key: value for key, value in settings.items() if key != "epochs"}


TWO_CORES = """
import os
os.sched_getaffinity = lambda process: {0, 1}
"""
"""Code of a run on any machine: on one core a process would prepare data alone, and torch warns of workers."""


def with_workers(folder: Path, count: int, **data: Any) -> dict[str, Any]:
    """A run whose first epoch, and so its loader's workers, outlasts the test."""
    settings = endless(folder, "causal")
    if not (code := folder / "train.py").exists():
        code.write_text(TWO_CORES)
    rows = folder / "texts.jsonl"
    rows.write_text('{"text": "one two three four five six seven eight nine ten and again"}\n' * 20_000)
    settings["data"] |= {"sources": [str(rows)], "dl_num_workers": count, **data}
    return settings


def steps(run: Run) -> list[int]:
    return [record["step"] for record in run.records()]


@pytest.mark.fault(11)
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGUSR1, 1)])
def test_a_signal_to_the_command_saves_the_update_under_way_and_the_run_goes_on_there(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    settings = endless(tmp_path, checkpoint=RESUMABLE)
    with Run(tmp_path, settings, "--num_gpus", str(processes)) as run:
        run.reach(3)
        run.process.send_signal(number)
        assert run.end() == 128 + number
    last = steps(run)[-1]
    assert run.stderr == "" and saved(tmp_path, last)
    if number == signal.SIGTERM:
        with Run(tmp_path, settings, f"exit_iteration={last + 2}", "--num_gpus", str(processes)) as run:
            assert run.end() == 0
        assert steps(run)[-3:] == [last, last + 1, last + 2]


def saved(folder: Path, update: int) -> bool:
    return (folder / "runs" / "recipe" / "checkpoints" / "deepspeed" / f"step_{update}").is_dir()


@pytest.mark.fault(11)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_a_signal_to_the_whole_group_saves_though_loader_workers_get_it_too(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Run(tmp_path, with_workers(tmp_path, 2) | {"checkpoint": RESUMABLE}) as run:
        run.reach(2)
        os.killpg(run.process.pid, number)
        assert run.end() == 128 + number
    assert run.stderr == "" and saved(tmp_path, steps(run)[-1])


@pytest.mark.fault(11)
def test_a_signal_saves_under_deepspeeds_launcher_which_sends_it_twice(tmp_path: Path) -> None:
    with Run(tmp_path, endless(tmp_path, checkpoint=RESUMABLE), "--include", "localhost:0") as run:
        run.reach(3)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 143
    assert saved(tmp_path, steps(run)[-1])


IMPORTS = """
import os, pathlib, time
if "RANK" in os.environ:
    pathlib.Path(os.environ["RANK"]).touch()
    time.sleep(3600)
"""


@pytest.mark.fault(11)
def test_ctrl_c_while_the_processes_import_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(IMPORTS)
    with Run(tmp_path, endless(tmp_path), "--num_gpus", "2") as run:
        wait_for((tmp_path / "1").exists)
        wait_for((tmp_path / "0").exists)
        run.family()
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
    assert run.stderr == ""


WAITS = """
import time
from arctic_training import GANTrainer

class Waits(GANTrainer):
    name = "waits"

    def after_update(self):
        super().after_update()
        if self.progress.step == 3:
            time.sleep(3600)
"""


@pytest.mark.fault(11)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_a_second_signal_ends_an_update_that_does_not_come_to_its_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "train.py").write_text(WAITS)
    with Run(tmp_path, endless(tmp_path, checkpoint=RESUMABLE) | {"type": "waits"}) as run:
        run.reach(3)
        run.process.send_signal(number)
        time.sleep(1)
        assert run.process.poll() is None
        run.process.send_signal(number)
        assert run.end() == -number
    assert run.stderr == ""


@pytest.mark.fault(9)
def test_a_process_that_is_killed_is_named_and_ends_the_run(tmp_path: Path) -> None:
    # new interpreters: what torch prints of broken connections is decided when it is imported
    with Run(tmp_path, endless(tmp_path), "--num_gpus", "2", new_interpreters=True) as run:
        run.reach(3)
        os.kill(run.rank(1), signal.SIGKILL)
        assert run.end() == 137
    assert run.stderr == "[rank 1] was ended by SIGKILL; the other processes were ended too\n"


RAISES = """
from arctic_training import GANTrainer
from arctic_training.distributed.process_group import rank

class Raises(GANTrainer):
    name = "raises"

    def loss(self, batch):
        if self.progress.step == 3 and rank() == 1:
            raise RuntimeError("on purpose")
        return super().loss(batch)
"""


@pytest.mark.fault(13)
def test_an_exception_in_one_process_is_told_once_with_its_rank(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(RAISES)
    with Run(tmp_path, endless(tmp_path) | {"type": "raises"}, "--num_gpus", "2") as run:
        run.reach(3)
        assert run.end() == 1
    assert run.stderr.startswith("[rank 1] ") and run.stderr.rstrip().endswith("RuntimeError: on purpose")
    assert run.stderr.count("on purpose") == 2  # the line of the code, and what it raised
    assert "train.py" in run.stderr and run.stderr.count("Traceback") <= 1


SPOILS = RAISES.replace('raise RuntimeError("on purpose")', 'return super().loss(batch) * float("nan")')


@pytest.mark.fault(14)
def test_a_loss_that_is_no_number_ends_every_process_with_a_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SPOILS)
    settings = endless(tmp_path, checkpoint={"type": "deepspeed", "save_every_n_steps": 1}) | {"type": "raises"}
    with Run(tmp_path, settings, "--num_gpus", "2") as run:
        assert run.end() == 3
    assert run.stderr.startswith("step 4: the loss is not finite: rank 1.") and run.stderr.count("\n") == 1
    saved = tmp_path / "runs" / "recipe" / "checkpoints" / "deepspeed"
    assert sorted(path.name for path in saved.iterdir()) == ["latest", "step_1", "step_2", "step_3"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a short path: where it is long, sockets are elsewhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def left_in(temporary: Path) -> list[str]:
    # the sockets' folders of a run that was killed are gone; torch keeps one for what it compiles, once
    return [name for name in os.listdir(temporary) if not name.startswith("torchinductor_")]


@pytest.mark.fault(12, 24, 25)
def test_nothing_stays_behind_of_a_command_that_was_killed_not_even_loader_workers(
    tmp_path: Path, temporary: Path
) -> None:
    settings = with_workers(tmp_path, 2, num_proc=2)
    own = {"TOKENIZERS_PARALLELISM": "", "TMPDIR": str(temporary)}
    with Run(tmp_path, settings, "--num_gpus", "2", **own) as run:
        run.reach(2)
        left = descendants(run.process.pid)
        assert len(left) >= 6  # two processes, and two workers of each
        run.process.kill()
        wait_for(lambda: not [pid for pid in left if alive(pid)])
    assert "fork" not in run.stderr
    assert not shared_memory(left)
    with Run(tmp_path, settings, "exit_iteration=1", **own) as run:
        assert run.end() == 0
    assert left_in(temporary) == []


SLEEPS = f"""{TWO_CORES}
import time
from arctic_training.data.preparation import map_rows

map_rows._EncodeTable.__call__ = lambda self, table, indices: time.sleep(3600)
"""


def preparing(folder: Path, temporary: Path, *words: str) -> Run:
    """A run that prepares its data on two processes, and does not come to an end of it."""
    (folder / "train.py").write_text(SLEEPS)
    run = Run(folder, with_workers(folder, 0, num_proc=2), *words, TMPDIR=str(temporary))

    def has_forked() -> bool:
        assert run.process.poll() is None, run.stderr
        return len(run.family()) == (6 if words else 4)  # the command, its ranks; a pool of two, and its queue

    wait_for(has_forked, lambda: run.stderr)
    time.sleep(1)  # what has just been forked is not yet told
    return run


def scratch(folder: Path) -> list[str]:
    return [path.name for path in (folder / "files" / "cache").glob("rows_*")]


@pytest.mark.fault(12, 24)
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_nothing_stays_behind_of_a_command_that_ends_while_it_prepares(
    tmp_path: Path, temporary: Path, number: signal.Signals
) -> None:
    with preparing(tmp_path, temporary) as run:
        run.process.send_signal(number)
        assert run.end() == -number
    assert run.stderr == "" and scratch(tmp_path)
    (tmp_path / "train.py").unlink()
    own = {"TMPDIR": str(temporary)}
    with Run(tmp_path, with_workers(tmp_path, 0), "exit_iteration=1", **own) as run:
        assert run.end() == 0
    assert not scratch(tmp_path)
    assert left_in(temporary) == []


@pytest.mark.fault(11)
@pytest.mark.parametrize("words", [pytest.param((), marks=pytest.mark.nightly), ("--num_gpus", "2")])
def test_ctrl_c_ends_a_run_that_prepares_its_data_without_a_word(
    tmp_path: Path, temporary: Path, words: tuple[str, ...]
) -> None:
    with preparing(tmp_path, temporary, *words) as run:
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        assert run.end() == 130
    assert run.stderr == "" and not scratch(tmp_path)


@pytest.mark.fault(26)
def test_a_loader_worker_that_is_killed_ends_the_run_with_its_name(tmp_path: Path) -> None:
    with Run(tmp_path, with_workers(tmp_path, 1)) as run:
        run.reach(2)
        (worker,) = descendants(run.process.pid)
        os.kill(worker, signal.SIGKILL)
        assert run.end() == 1
    assert run.stderr.startswith(f"a worker of the data loader (process {worker}) was ended by SIGKILL; ")


SLOW = """
from types import SimpleNamespace
from arctic_training import GANTrainer
from arctic_training.callback import time_limit

now = 1000.0
time_limit.time = SimpleNamespace(monotonic=lambda: now, time=lambda: now)

class Slow(GANTrainer):
    name = "slow"

    def step(self, batch):
        global now
        now += 0.5
        super().step(batch)
"""


@pytest.mark.fault(35)
def test_a_run_ends_in_good_order_before_the_scheduler_ends_it(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SLOW)
    settings = endless(tmp_path, checkpoint=RESUMABLE) | {"type": "slow"}
    with Run(tmp_path, settings, "--num_gpus", "2", SLURM_JOB_END_TIME="1020") as run:
        assert run.end() == 75
    last = steps(run)[-1]
    assert saved(tmp_path, last) and 10 < 0.5 * last < 20
