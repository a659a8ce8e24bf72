"""What `new trainer` writes trains, and passes its own tests, as it is written; nothing is overwritten."""

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

from arctic_training.cli.main import main
from arctic_training.cli.new_trainer import TEMPLATES


def run_tests(file: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Calls the test functions of a file, and returns how many there are."""
    monkeypatch.syspath_prepend(file.parent)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    for test in tests:
        assert not inspect.signature(test).parameters
        test()
    return len(tests)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_it_trains_and_passes_its_tests(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"new_{kind}"
    assert main(["new", "trainer", name, "--kind", kind]) == 0
    printed = capsys.readouterr().out
    files = [file for file in (tmp_path / name).rglob("*") if file.is_file()]
    assert files and all(f"  {file.relative_to(tmp_path)}\n" in printed for file in files)
    assert main([f"{name}/recipe.yaml", "train_iters=2"]) == 0
    assert run_tests(tmp_path / name / f"test_{name}.py", monkeypatch) >= 2
    sys.modules.pop(f"{name}_loss", None)


def test_what_exists_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("type: sft\n")
    assert main(["new", "trainer", "mine"]) == 2
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["recipe.yaml"]
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "type: sft\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer"], "the following arguments are required: NAME; see arctic_training new --help"),
        (["callback", "mine"], "argument trainer: invalid choice: 'callback'"),
        (["trainer", "Mine"], "'Mine' cannot name a trainer: use small letters"),
        (["trainer", "../mine"], "cannot name a trainer"),
        (["trainer", "dpo"], "a trainer 'dpo' is built in"),
        (["trainer", "mine", "--kind", "sound"], "--kind: invalid choice: 'sound'"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
