"""The command as a person sees it: help, lists, checks; and how little it costs."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from arctic_training.cli.main import main
from tests import tiny
from tests.processes import HANG, ROOT
from tests.test_architecture import HOMES, SLOW

RECIPE = "model: {name_or_path: some/model}\ndata: {sources: [a/b]}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    return "recipe.yaml"


LOADED = """
import sys
import {first}
first = set(sys.modules)
from arctic_training.cli.main import main
assert main({words!r}) == 0
print()
print(*(set(sys.modules) - first))
"""


def loaded(*words: str, first: str = "sys") -> set[str]:
    """The modules that the command imports beside those that ``first`` has imported."""
    code = LOADED.format(words=list(words), first=first)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=HANG
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_but_its_words() -> None:
    modules = loaded("--help")
    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == {"arctic_training"}
    assert len(modules) < 50


def test_a_mistake_in_the_words_is_told_before_anything_is_imported() -> None:
    code = "import sys; from arctic_training.cli.main import main; main(['r.yaml', '--num_gpus', 'x']); "
    code += "sys.exit(bool({'torch', 'pydantic', 'yaml'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_validating_imports_little_more_than_torch(recipe: str) -> None:
    modules = loaded("validate", recipe, first="torch")
    others = {name for name in modules if name.partition(".")[0] != "arctic_training"}
    assert len(others) < 150  # torch alone is some 1,500


def test_validating_imports_no_heavy_library(recipe: str) -> None:
    with Path(recipe).open("a") as file:
        file.write("trackers: [mlflow, tensorboard, trackio]\n")  # those that have no login to look for
    imported = {name.partition(".")[0] for name in loaded("validate", recipe)}
    assert "torch" in imported and not imported & (SLOW | HOMES.keys())


def test_a_good_recipe_is_said_to_be_good(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", recipe]) == 0
    assert capsys.readouterr() == ("recipe.yaml: no problems found\n", "")
    assert os.listdir() == ["recipe.yaml"]


def test_a_check_that_opens_a_model_prints_nothing_of_libraries(tmp_path: Path, tiny_model: Path) -> None:
    tiny.save_chats(tmp_path / "chats.jsonl", 4)
    recipe = f"model: {{name_or_path: {tiny_model}}}\ndata: {{sources: [{tmp_path}/chats.jsonl]}}\ntrain_iters: 4\n"
    saved = "checkpoint: {type: huggingface, save_end_of_training: true}\n"  # its check asks DeepSpeed for the device
    (tmp_path / "recipe.yaml").write_text(recipe + saved)
    command = [sys.executable, "-m", "arctic_training", "validate", "recipe.yaml"]
    clean = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    environment = {**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("recipe.yaml: no problems found\n", "")


def test_the_resolved_recipe_is_shown_and_nothing_run(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([recipe, "seed=7", "--show"]) == 0
    out, err = capsys.readouterr()
    origins = {line.partition("#")[0].strip(): line.partition("#")[2].strip() for line in out.splitlines()}
    assert origins["seed: 7"] == "command line"
    assert origins["name_or_path: some/model"] == "recipe.yaml:1:23"
    assert origins["epochs: 1"] == "default"
    assert err == ""
    assert os.listdir() == ["recipe.yaml"]


def test_what_is_registered_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for kind in ("trainer", "callback", "data_source", "model_factory", "optimizer_factory", "checkpoint_engine"):
        assert f"{kind}:\n" in out
    assert main(["list", "trainer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trainer:"
    names = [line.split()[0] for line in lines[1:] if line]
    assert {"sft", "causal", "dpo", "gan"} <= set(names)
    assert names == sorted(names)
    assert main(["list", "trainr"]) == 2
    assert "did you mean 'trainer'?" in capsys.readouterr().err


def test_every_built_in_class_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from arctic_training.registry import kinds, lookup, names

    assert main(["list"]) == 0
    out = capsys.readouterr().out
    silent = []
    for kind in kinds():
        for name in names(kind):
            if lookup(kind, name).__module__.startswith("arctic_training.") and f"\n  {name}\n" in out:
                silent.append(f"{kind} {name}")
    assert not silent


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        expected = version("arctic_training")
    except ModuleNotFoundError:
        pytest.skip("the package is not installed here")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_help_is_the_same_however_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for words in (["-h"], ["--help"], ["train", "--help"]):
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    assert outputs[0].startswith("usage: arctic_training ")


def test_output_into_a_pipe_that_closes_is_no_error(recipe: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "arctic_training", recipe, "--show"]
    shown = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    assert b"Traceback" not in shown.stderr.read()
    shown.stderr.close()
    shown.wait(HANG)
