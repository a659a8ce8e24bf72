"""Many runs, and many updates, leave nothing: no file, no thread, no open file, no memory."""

import ctypes
import gc
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from arctic_training import GANTrainer, get_config
from tests import processes
from tests.command import shared_memory
from tests.contract.cases import recipe

pytestmark = pytest.mark.fault(24)


def held() -> tuple[int, int]:
    """Bytes of memory and open files of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))


def train(folder: Path, cls: type[GANTrainer] = GANTrainer, **more: Any) -> None:
    checkpoint = {"type": "deepspeed", "save_every_n_steps": 50, "save_end_of_training": True, "keep_last": 1}
    settings = recipe("gan", folder / "files", checkpoint=checkpoint, output_dir=str(folder / "run"), **more)
    trainer = cls(get_config(settings | {"type": cls.name}))
    trainer.train()
    trainer.close()


def many_runs(folder: Path) -> dict[str, Any]:
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "temporary")
    os.mkdir(tempfile.tempdir)
    counts = []
    for number in range(20):
        train(folder / str(number))
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    end = time.monotonic() + processes.HANG  # a watchdog's thread ends when it next wakes
    while threading.active_count() > counts[0][1] and time.monotonic() < end:
        gc.collect()
        time.sleep(0.1)
    # torch keeps one folder for what it compiles, for every run of the user
    files = [name for name in os.listdir(tempfile.tempdir) if not name.startswith("torchinductor_")]
    return {"process": os.getpid(), "files": files, "open": counts, "threads": threading.active_count()}


def test_twenty_runs_leave_no_file_no_open_file_and_no_thread(tmp_path: Path) -> None:
    (left,) = processes.run(many_runs, 1, tmp_path)
    opened = [count for count, _ in left["open"]]
    assert left["files"] == [] and not shared_memory([left["process"]])
    assert opened[-1] <= opened[1], opened
    assert left["threads"] <= left["open"][1][1], left


class Measured(GANTrainer):
    """Notes what it holds."""

    name = "measured_for_the_test"
    seen: ClassVar[dict[int, tuple[int, int]]] = {}

    def after_update(self) -> None:
        super().after_update()
        if self.progress.step in (100, 500):
            self.seen[self.progress.step] = held()


def many_updates(folder: Path) -> dict[int, tuple[int, int]]:
    train(folder, Measured, epochs=0, train_iters=500)
    return Measured.seen


def test_five_hundred_updates_take_no_more_memory_and_no_more_files_than_a_hundred(tmp_path: Path) -> None:
    (seen,) = processes.run(many_updates, 1, tmp_path)
    assert seen[500][0] < 1.01 * seen[100][0], seen
    assert seen[500][1] <= seen[100][1], seen
