"""What a recipe leads to and cannot be used is refused in its own words, and nothing is written."""

import gc
import socket
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  # by its first import it writes to the home of the process
import pytest

from arctic_training.cli.main import main
from tests.bad_inputs import (
    bad_adapters,
    bad_architectures,
    bad_checkpoints,
    bad_code,
    bad_data,
    bad_evaluations,
    bad_lexers,
    bad_models,
    bad_networks,
    bad_parts,
    bad_rewards,
    bad_runs,
    bad_tensors,
)
from tests.bad_inputs.case import Case, listing, same, sft

TABLES = {
    "data": bad_data.CASES,
    "model": bad_models.CASES,
    "code": bad_code.CASES,
    "run": bad_runs.CASES,
    "reward": bad_rewards.CASES,
    "lexer": bad_lexers.CASES,
    "parts": bad_parts.CASES,
    "tensors": bad_tensors.CASES,
    "adapter": bad_adapters.CASES,
    "architecture": bad_architectures.CASES,
    "network": bad_networks.CASES,
    "checkpoint": bad_checkpoints.CASES,
    "evaluation": bad_evaluations.CASES,
}
CASES = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}

SHOWN = {
    7: ["run: checkpoints into a file", "run: checkpoints that cannot be made", "run: output_dir cannot be made"],
    20: ["model: a pickle in place of weights", "model: a pickle among weights"],
    22: ["model: a model with code of its own", "model: a tokenizer with code of its own"],
    30: ["data: a line that is not JSON", "data: a row without its column", "data: a bad row after blank lines"],
}
"""Rows of the matrix that some of them show too."""


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.fault(32, *(number for number, names in SHOWN.items() if name in names))]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, a home, a cache and a folder for temporary files, all of them watched."""
    for name in ("here", "home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ARCTIC_TRAINING_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):  # of a run in this process
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "here"


@pytest.mark.parametrize("case", [pytest.param(case, id=name, marks=marks(name)) for name, case in CASES.items()])
def test_a_bad_input_is_refused(
    case: Case, here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.plant(here, tiny_model)
    case.set_up(monkeypatch)
    if not case.starts:  # there are no engines to be collected, and two hundred times all objects take a while
        monkeypatch.setattr(gc, "collect", lambda *generation: 0)
    capsys.readouterr()  # of planting
    before = listing(here.parent)
    code = main(["recipe.yaml", *case.words])
    out, err = capsys.readouterr()
    assert same(err.splitlines(), case.expected(here)), err
    assert code == case.code
    assert case.starts or not out
    after = {path: about for path, about in listing(here.parent).items() if not case.may_write(path)}
    assert after == before


@pytest.mark.fault(32)
def test_a_port_that_is_taken(here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Case("").plant(here, tiny_model)
    before = listing(here.parent)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["recipe.yaml", "--num_gpus", "2", "--master_port", str(port)]) == 2
    assert capsys.readouterr().err == f"--master_port {port}: Address already in use; remove it to use a free port\n"
    assert listing(here.parent) == before


@pytest.mark.fault(32)
def test_a_recipe_that_keeps_to_its_root_is_good(
    here: Path, tiny_chats: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name on the hub is no path, and a link within the root leads nowhere else."""
    recipe = sft("link.jsonl", model="some/model", more="output_dir: out/../runs\ncode: mine.py\n")
    files = {"link.jsonl": lambda at: at.symlink_to("rows.jsonl"), "mine.py": "x = 1\n"}
    Case("", recipe=recipe, files=files).plant(here, tiny_chats)
    monkeypatch.setenv("ARCTIC_TRAINING_ROOT", str(here))
    assert main(["validate", "recipe.yaml"]) == 0, capsys.readouterr().err


def test_every_row_shown_is_a_case() -> None:
    assert {name for names in SHOWN.values() for name in names} <= CASES.keys()
    assert len(CASES) > 200
