"""A tracker that cannot log the run refuses it before anything of the run is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from arctic_training import ComponentConfig, get_config
from arctic_training.launch.worker import run
from arctic_training.tracker.tracker import Tracker
from tests.contract.cases import recipe


class ServerConfig(ComponentConfig):
    fails: str = ""


class Server(Tracker):
    """A server that may not answer."""

    name = "server_of_a_test"
    config_type = ServerConfig
    heard: ClassVar[list[str]] = []

    def check(self) -> None:
        if self.config.fails == "check":
            raise ConnectionError("nobody answers")

    def start(self, recipe: Mapping[str, Any], run_dir: Path, step: int) -> None:
        self.heard.append(f"start {sorted(path.name for path in run_dir.iterdir())}")
        if self.config.fails == "start":
            raise ConnectionError("nobody answers")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.heard.append(f"log {step}")

    def finish(self, failed: bool) -> None:
        self.heard.append(f"finish {failed}")


@pytest.mark.parametrize("fails", ["check", "start"])
def test_one_that_cannot_start_refuses_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: str) -> None:
    Server.heard.clear()
    sections = [{"type": Server.name}, {"type": Server.name, "fails": fails}]
    settings = recipe("sft", tmp_path / "files", output_dir=str(tmp_path / "run"), trackers=sections)
    assert run(get_config(settings)) == 2
    error = "trackers: server_of_a_test cannot log the run (ConnectionError: nobody answers)"
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == error and "Traceback" not in shown.err and "run folder" not in shown.out
    assert not (tmp_path / "run").exists()
    assert Server.heard == ([] if fails == "check" else ["start ['.lock']", "start ['.lock']", "finish True"])


def test_one_that_refuses_a_run_that_goes_on_leaves_what_is_there(tmp_path: Path) -> None:
    settings = recipe("sft", tmp_path / "files", output_dir=str(tmp_path / "run"), train_iters=1)
    assert run(get_config(settings)) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(get_config({**settings, "train_iters": 2, "trackers": [{"type": Server.name, "fails": "start"}]})) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
