"""A run that hangs is ended: in the set time, with the name of who is stuck, and nobody left behind."""

import contextlib
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

from arctic_training.distributed.heartbeat import record_heartbeat
from tests import forked, processes
from tests.command import Run, descendants
from tests.contract.cases import recipe
from tests.work import calls

TIMEOUT = 10.0
WATCHED = """
import time
from arctic_training import GANTrainer
from arctic_training.distributed.process_group import rank

class Watched(GANTrainer):
    name = "watched"

    def after_update(self):
        super().after_update()
        if self.progress.step == 2:  # its start may take as long as it takes
            self.watch.timeout, self.watch.pause = 10.0, 1.0
"""


def endless(folder: Path, code: str, name: str, **more: Any) -> dict[str, Any]:
    """A run of small updates without an end that a test would see, which is watched closely from the third on."""
    (folder / "train.py").write_text(code)
    settings = recipe("gan", folder / "files", train_iters=10_000_000, hang_timeout=processes.HANG, **more)
    return {key: value for key, value in settings.items() if key != "epochs"} | {"type": name}


@pytest.mark.fault(10)
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_is_named_and_the_run_ends(tmp_path: Path, stopped: int) -> None:
    with Run(tmp_path, endless(tmp_path, WATCHED, "watched"), "--num_gpus", "2") as run:
        run.reach(3)
        time.sleep(6)  # at first, ranks read the reports of the others every five seconds
        os.kill(pid := run.rank(stopped), signal.SIGSTOP)
        since = time.monotonic()
        assert run.end() == 70
        assert time.monotonic() - since > TIMEOUT - 1
        *stacks, message, last = run.stderr.split("\n")
    assert last == "" and re.search(
        rf"the run hangs: rank {stopped} \(process {pid} on .*\) has sent no heartbeat for \d+ s; "
        rf"it was last seen at step \d+, phase .* \(hang_timeout: 10 s\)$",
        message,
    )
    shown = "\n".join(stacks)
    assert f"[rank {1 - stopped}] the run hangs; the stack of each thread of process" in shown
    assert shown.index("  MainThread:") < shown.index("    > arctic_training/trainer/trainer.py:")


STUCK = (
    WATCHED
    + """

class Stuck(Watched):
    name = "stuck"

    def step(self, batch):
        if self.progress.step == 3 and rank() == 1:
            self.wait_for_nobody()
        super().step(batch)

    def wait_for_nobody(self):
        time.sleep(3600)
"""
)


@pytest.mark.fault(10)
def test_without_the_launcher_each_process_ends_itself_and_the_stuck_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(endless(tmp_path, STUCK, "stuck", loss_log_interval=0)))
    with forked.Run([str(tmp_path / "recipe.yaml")], tmp_path / "log", world=2) as run:
        assert run.wait(), run.output()
        assert run.codes == [70, 70]
    outputs = [(tmp_path / f"log.{rank}").read_text() for rank in range(2)]
    for one in outputs:
        assert re.search(
            r"rank 1 \(process .*\) has made no progress for \d+ s at step 4, phase step: \S*train.py:\d+ wait_for", one
        )
    assert re.search(r"    > \S*train.py:\d+ wait_for_nobody\n", outputs[1])


ALONE = """
import subprocess, time
from types import SimpleNamespace
from arctic_training.distributed import heartbeat, watchdog

now = 0.0
watchdog.time = heartbeat.time = SimpleNamespace(monotonic=lambda: now)


class Trainer:
    _active_events = set()
    progress = SimpleNamespace(step=6)


class Turns:
    "In the place of the event that the thread waits for: each wait is a turn of the clock and of the story."

    def __init__(self, pause):
        self.pause, self.turns = pause, self.story()

    def is_set(self):
        return False

    def wait(self, pause):
        next(self.turns)

    def pass_by(self, turns, doing=None):
        global now
        for _ in range(turns):
            now += self.pause
            if doing:
                heartbeat.record_heartbeat(doing)
            yield

    def story(self):
        global now
        yield from self.pass_by(10)
        say("idle")
        with heartbeat.no_timeout("preparing"):
            trainer._active_events.add("init")
            yield from self.pass_by(10)
        say("unhurried")
        yield from self.pass_by(10, "step")
        say("beating")
        now += 3  # as when a scheduler suspends a whole run
        yield
        say("suspended")
        say(subprocess.Popen(["sleep", "3600"]).pid)
        yield from self.pass_by(10)


def say(what):
    print(what, flush=True)

trainer = Trainer()
watch = watchdog.Watchdog(trainer, 1.0)
watch.over = Turns(watch.pause)
time.sleep(3600)
"""


@pytest.fixture
def alone() -> Iterator[subprocess.Popen[str]]:
    """A process that is watched with a time-out of one second of its own clock."""
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", ALONE], env=environment, start_new_session=True, **pipes)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.fault(10)
def test_only_a_process_that_is_at_work_and_does_not_come_on_is_ended(alone: Any) -> None:
    for state in ("idle", "unhurried", "beating", "suspended"):
        assert alone.stdout.readline() == f"{state}\n"
    assert alone.stdout.readline().strip() == str(*descendants(alone.pid))
    out, err = alone.communicate(timeout=processes.HANG)  # when nobody holds the pipes: the child is ended too
    assert (alone.returncode, out) == (70, "")
    assert "\nthe run hangs: the process has made no progress for 1 s at step 7, phase step (hang_timeout: 1 s)" in err


def test_a_sign_of_life_costs_nothing() -> None:
    assert calls(lambda: record_heartbeat("step")) < 5


COLLECTED = """
import gc, os, threading, time
from arctic_training.distributed import watchdog


class Garbage:
    "Garbage that lets other threads run when it is collected."

    def __init__(self):
        self.itself = self

    def __del__(self):
        time.sleep(0.001)


def start_threads():
    while True:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()


threading.Thread(target=start_threads, daemon=True).start()
gc.set_threshold(1, 1, 1)
for _ in range(50):
    Garbage()
    watchdog.current_line()
    assert "MainThread" in watchdog.stacks() and gc.isenabled()
gc.disable()
watchdog.current_line()
print("collects by itself:", gc.isenabled(), flush=True)
os._exit(0)
"""


@pytest.mark.fault(10)
def test_a_collection_of_garbage_while_stacks_are_read_does_not_stop_the_process() -> None:
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED], env=environment, capture_output=True, text=True, timeout=processes.HANG
    )
    assert (done.returncode, done.stdout) == (0, "collects by itself: False\n"), done.stderr
