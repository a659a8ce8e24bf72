"""Weights & Biases: what a run that is kept offline holds, by the library's own files; and what refuses a run."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from arctic_training.trainer.throughput import MEASURED
from tests import processes
from tests.command import Run, wait_for
from tests.contract.cases import recipe
from tests.processes import ROOT

SECRET = "n0body-may-read-this-one"
OFFLINE = {"enable": True, "mode": "offline"}
KEY = "0123456789abcdef" * 3


def start(folder: Path, wandb: dict[str, Any], *words: str, updates: int = 5, **environment: str) -> Run:
    """A run in a home of its own."""
    for name in ("home", "tmp"):
        (folder.parent / name).mkdir(exist_ok=True)
    settings = recipe(
        "gan", folder / "files", checkpoint={"type": "deepspeed", "auto_resume": True, "save_every_n_steps": 2}
    )
    settings = {key: value for key, value in settings.items() if key != "epochs"} | {"train_iters": updates}
    settings |= {"wandb": wandb, "kill_switch_path": "${env:NAME}"}
    own = {"HOME": str(folder.parent / "home"), "TMPDIR": str(folder.parent / "tmp"), "NAME": SECRET}
    return Run(folder, settings, *words, **{"WANDB_API_KEY": "", **own, **environment})


def written(path: Path) -> Iterator[Any]:
    """The records of a run's file: blocks of 32 KiB, of pieces with checksum, length and whether more follow."""
    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of one, or its last piece
            yield Record.FromString(record)
            record = b""


def histories(folder: Path) -> list[tuple[str, list[dict[str, Any]], int]]:
    """Returns the id of the run, the logged rows and the exit code of each start."""
    runs = []
    for path in sorted(folder.glob("runs/recipe/wandb/offline-run-*/run-*.wandb")):
        records = list(written(path))
        (run,) = [one.run for one in records if one.HasField("run")]
        rows = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item}
            for one in records
            if one.HasField("history")
        ]
        (code,) = [one.exit.exit_code for one in records if one.HasField("exit")]
        runs.append((run.run_id, rows, code))
    return runs


def numbers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs from run to run: the time, and the library's own count."""
    return [
        {name: value for name, value in one.items() if not name.startswith("_") and name not in MEASURED}
        for one in records
    ]


def test_a_run_that_goes_on_is_one_run_with_the_numbers_of_one_that_nobody_tells(tmp_path: Path) -> None:
    folder = tmp_path / "told"
    for words in (("exit_iteration=2",), ()):
        with start(folder, OFFLINE, *words, WANDB_API_KEY=KEY) as run:
            assert run.end() == 0, run.stderr
    with start(tmp_path / "not", {}) as plain:
        assert plain.end() == 0
    first, second = histories(folder)
    assert first[0] == second[0] and (first[2], second[2]) == (0, 0)
    lines = list(run.records())
    assert [one["step"] for one in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        del line["time"]
    assert numbers(first[1]) + numbers(second[1]) == numbers(lines)
    assert [one["loss"] for one in lines] == [one["loss"] for one in plain.records()]  # not a bit is another
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path for path, content in contents.items() if SECRET.encode() in content or KEY.encode() in content] == []
    assert [name for name in os.listdir(tmp_path / "tmp") if not name.startswith("torchinductor_")] == []


def test_a_run_that_begins_anew_is_another(tmp_path: Path) -> None:
    for _ in range(2):
        with start(tmp_path / "run", {}, "trackers=[wandb]", "checkpoint=[]", WANDB_MODE="offline") as run:
            assert run.end() == 0, run.stderr
    first, second = histories(tmp_path / "run")
    assert first[0] != second[0] and numbers(first[1]) == numbers(second[1])


def test_a_run_that_fails_is_told_as_such(tmp_path: Path) -> None:
    with start(tmp_path / "run", OFFLINE, "optimizer.lr=1e30") as run:
        assert run.end() == 3
    ((_, _, code),) = histories(tmp_path / "run")
    assert code == 1


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        ((), {}, "nobody is logged in; "),
        (("--num_gpus", "2"), {}, "nobody is logged in; "),
        ((), {"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid: API key must have 40+ characters, has 5; "),
        (
            (),
            {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "Failed to authenticate with http://127.0.0.1:9: ",
        ),
    ],
)
def test_without_a_login_or_a_server_the_run_is_refused_at_once(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    with start(tmp_path / "run", {"enable": True}, *words, **environment) as run:
        assert run.end() == 2
    (line,) = [one for one in run.stderr.splitlines() if not one.startswith("wandb: [wandb.login()]")]
    assert re.match(rf"recipe\.yaml:\d+:1: wandb: {re.escape(says)}", line), line
    assert line.endswith("run `wandb login`, set WANDB_API_KEY, or let wandb.mode be offline")
    assert sorted(os.listdir(tmp_path / "run")) == ["files", "recipe.yaml", "stderr.txt", "stdout.txt"]


def test_a_run_is_told_once(tmp_path: Path) -> None:
    with start(tmp_path / "run", OFFLINE, "trackers=[wandb]") as run:
        assert run.end() == 2
    assert run.stderr.endswith("wandb.enable: true, and wandb is among the trackers too; remove one of them\n")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """One that lives until it is killed, and what leads to it."""
    port = processes.free_port()
    with open(tmp_path / "server.jsonl", "wb") as output:
        running = subprocess.Popen([sys.executable, "-m", "tests.tracker.server", str(port)], cwd=ROOT, stdout=output)
    wait_for(lambda: answers(port))
    yield running, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    running.kill()
    running.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_is_told_reaches_the_server(tmp_path: Path, server: Any) -> None:
    with start(tmp_path / "run", {"enable": True, "project": "mine"}, **server[1]) as run:
        assert run.end() == 0, run.stderr
    sent: list[dict[str, Any]] = []
    for line in (tmp_path / "server.jsonl").read_text().splitlines():
        posted = json.loads(line)
        assert posted["run"] == (tmp_path / "run/runs/recipe/wandb/run_id").read_text().strip()
        sent += map(json.loads, posted.get("files", {}).get("wandb-history.jsonl", {}).get("content", []))
    assert [one["step"] for one in sent] == [1, 2, 3, 4, 5]
    assert [one["loss"] for one in sent] == [record["loss"] for record in run.records()]


SHORT = """
from arctic_training.tracker import wandb

assert wandb._FINISH == 30
wandb._FINISH = 3
"""


def test_a_server_that_is_gone_ends_no_run_and_does_not_hold_it_at_its_end(tmp_path: Path, server: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.py").write_text(SHORT)  # the run waits for the server as long
    with start(tmp_path / "run", {"enable": True}, updates=10_000_000, **server[1]) as run:
        run.reach(10)
        server[0].kill()
        run.reach(max(record["step"] for record in run.records()) + 100)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 143
    assert "Use `wandb sync`" in run.stderr
    assert list((tmp_path / "run" / "runs" / "recipe" / "wandb").glob("run-*/run-*.wandb"))
