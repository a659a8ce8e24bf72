"""A run that hangs is ended: in the set time, with the name of who is stuck, and nobody left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training.heartbeat import beat
from tests import processes
from tests.command import Run, descendants
from tests.contract.cases import recipe

TIMEOUT = 10.0


def told(folder: Path, **more: Any) -> dict[str, Any]:
    """A run of small updates without an end that a test would see."""
    made = recipe("gan", folder / "files", train_iters=10_000_000, hang_timeout=TIMEOUT, **more)
    return {key: value for key, value in made.items() if key != "epochs"}


@pytest.mark.long
@pytest.mark.fault(10)
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_is_named_and_the_run_ends(tmp_path: Path, stopped: int) -> None:
    with Run(tmp_path, told(tmp_path), "--num_gpus", "2") as run:
        run.reach(3)
        os.kill(pid := run.rank(stopped), signal.SIGSTOP)
        since = time.monotonic()
        assert run.end(TIMEOUT + 35) == 70
        assert TIMEOUT - 1 < time.monotonic() - since < TIMEOUT + 35
        *stacks, message, last = run.stderr.split("\n")
    assert last == "" and re.search(
        rf"the run hangs: rank {stopped} \(process {pid} on .*\) has given no sign of life for \d+ s; "
        rf"it was last in .*, update \d+ \(hang_timeout: 10 s\)$",
        message,
    )
    shown = "\n".join(stacks)
    assert f"[rank {1 - stopped}] the run hangs; where each thread of process" in shown
    assert shown.index("  MainThread:") < shown.index("    > arctic_training/trainer/trainer.py:")


STUCK = """
import time, torch
from arctic_training import GANTrainer
from arctic_training.distributed import rank

class Stuck(GANTrainer):
    name = "stuck"

    def step(self, batch):
        if self.progress.update == 3 and rank() == 1:
            self.wait_for_nobody()
        super().step(batch)

    def wait_for_nobody(self):
        time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.fault(10)
def test_without_the_launcher_each_process_ends_itself_and_the_stuck_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(STUCK)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(told(tmp_path, loss_log_interval=0) | {"type": "stuck"}))
    command = [sys.executable, "-m", "arctic_training", "recipe.yaml"]
    ranks = processes.start(command, 2, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        processes.stop(ranks)  # type: ignore[arg-type]
    assert [rank.returncode for rank in ranks] == [70, 70]
    for one in said:
        assert re.search(
            r"rank 1 \(process .*\) has not come on for \d+ s, in step, update 4: \S*train.py:\d+ wait_for", one
        )
    assert re.search(r"    > \S*train.py:\d+ wait_for_nobody\n", said[1])


ALONE = """
import sys, time
from types import SimpleNamespace
from arctic_training import heartbeat, watchdog



class Trainer:
    _running = set()
    progress = SimpleNamespace(update=6)

trainer = Trainer()
watch = watchdog.Watch(trainer, 1.0)
def say(what):
    print(what, flush=True)
time.sleep(2)
say("idle")
with heartbeat.unhurried("preparing"):
    trainer._running.add("init")
    time.sleep(2)
say("unhurried")
for _ in range(10):
    time.sleep(0.2)
    heartbeat.beat("step")
say("beating")
import subprocess
child = subprocess.Popen(["sleep", "600"])
say(child.pid)
time.sleep(600)
"""


@pytest.fixture
def alone() -> Iterator[subprocess.Popen[str]]:
    """A process that is watched with a time-out of one second."""
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", ALONE], env=environment, start_new_session=True, **pipes)
    yield process
    processes.stop([process])  # type: ignore[list-item]
    process.communicate()


@pytest.mark.fault(10)
def test_only_a_process_that_is_at_work_and_does_not_come_on_is_ended(alone: Any) -> None:
    assert [alone.stdout.readline().strip() for _ in range(2)] == ["idle", "unhurried"]
    alone.send_signal(signal.SIGSTOP)  # as a scheduler does that suspends a whole run
    time.sleep(3)
    alone.send_signal(signal.SIGCONT)
    assert alone.stdout.readline().strip() == "beating"
    assert alone.stdout.readline().strip() == str(*descendants(alone.pid))
    since = time.monotonic()
    out, err = alone.communicate(timeout=30)  # returns when nobody holds the pipes: the child is ended too
    assert (alone.returncode, out) == (70, "") and 0.5 < time.monotonic() - since < 10
    assert (
        "\nthe run hangs: the process has given no sign of life for 1 s, in step, update 7 (hang_timeout: 1 s)" in err
    )


def test_a_sign_of_life_costs_nothing() -> None:
    since = time.perf_counter()
    for _ in range(100_000):
        beat("step")
    assert time.perf_counter() - since < 0.5  # 5 us each on the slowest of machines; some 0.1 us it is
