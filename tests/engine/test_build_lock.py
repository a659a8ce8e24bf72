"""Locks that a killed build leaves hang nobody, and living builds are waited for."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arctic_training.engine import build_lock as module
from arctic_training.engine.build_lock import build_lock
from tests.processes import HANG, ROOT

pytestmark = pytest.mark.fault(27)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_none").mkdir()
    return tmp_path / "cpu_none"


def test_the_lock_of_a_build_that_was_killed_is_removed_at_once(folder: Path) -> None:
    code = (
        "import time; from arctic_training.engine.build_lock import build_lock\n"
        f"with build_lock('cpu_none'): open({str(folder / 'lock')!r}, 'w'); print('here', flush=True); time.sleep(600)"
    )
    build = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert build.stdout is not None and build.stdout.readline() == b"here\n"
    entered = threading.Event()

    def next_one() -> None:
        with build_lock("cpu_none"):
            entered.set()

    waiting = threading.Thread(target=next_one)
    waiting.start()
    assert not entered.wait(1) and (folder / "lock").exists()  # it lives, and is waited for
    build.send_signal(signal.SIGKILL)
    build.communicate()
    assert entered.wait(HANG)
    waiting.join()
    assert not (folder / "lock").exists()


def test_a_lock_of_others_is_taken_for_dead_when_nothing_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_STALE_AFTER", 1.5)
    (folder / "lock").touch()
    os.utime(folder / "lock", (time.time() + 1e6,) * 2)  # made by a clock that is ahead
    since = time.monotonic()
    with build_lock("cpu_none"):
        assert time.monotonic() - since > 1.4
    assert not (folder / "lock").exists()


def test_a_compiler_that_outlives_its_process_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALE_AFTER", 0.0)
    (folder / "lock").touch()
    os.utime(folder, (1, 1))
    os.utime(folder / "lock", (1, 1))
    since = time.monotonic()
    compiler = subprocess.Popen(["sleep", "1.5"], cwd=folder)
    threading.Thread(target=compiler.wait).start()
    with build_lock("cpu_none"):
        assert time.monotonic() - since > 1.2
