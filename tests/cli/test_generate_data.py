"""generate-data: the same bytes for any number of processes, all or nothing, and rows that a run reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arctic_training.cli.main import main
from arctic_training.config.sections.component import parse_component
from arctic_training.data.preparation.load_rows import load_rows
from arctic_training.registry import lookup
from tests.own_classes import only_built_in
from tests.processes import ROOT

RECIPE = """\
type: seq2seq
model: {name_or_path: small, random_weights: true, dtype: fp32}
tokenizer: {type: lexer, vocab: {range: {n: ["", 0, 16]}}}
data:
  sources: {type: generator, task: {type: polynomial_addition, max_degree: 2}, count: 300}
  eval_sources: {type: generator, task: "${data.sources.task}", count: 30, seed: 1}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def rows(path: str, **keys: Any) -> list[dict[str, str]]:
    config = parse_component("data_source", {"type": "jsonl", "name_or_path": path, **keys})
    return [dict(row) for row in load_rows(lookup("data_source", config.type)(None, config), "train")]  # type: ignore[call-arg,arg-type]


def test_the_files_do_not_depend_on_the_processes(capsys: pytest.CaptureFixture[str]) -> None:
    for processes in ("1", "3"):
        assert main(["generate-data", "recipe.yaml", "-o", f"of_{processes}", "--processes", processes]) == 0
    assert files("of_1") == files("of_3")
    assert set(files("of_1")) == {"train.jsonl", "eval.jsonl", "statistics.json"}
    assert sorted(path.name for path in Path().iterdir()) == ["of_1", "of_3", "recipe.yaml"]
    train, held = rows("of_1/train.jsonl"), rows("of_1/eval.jsonl")
    assert len(train) == 300 and len(held) == 30
    assert len({row["problem"] for row in train + held}) == 330
    statistics = json.loads(files("of_1")["statistics.json"])
    counts = statistics["train"]
    assert counts["instances"] == 300 and counts["source"]["task"]["max_degree"] == 2
    assert counts["generated"] == 300 + counts["repeated"] + counts["of_other_splits"]
    assert counts["answer_terms"]["max"] <= 6 and counts["problem_degree"]["max"] == 2
    out = capsys.readouterr().out
    assert f"train.jsonl: 300 of {counts['generated']:,} generated; repeated {counts['repeated']}, of other" in out
    assert "written to of_3" in out


def test_a_run_and_the_files_have_the_same_problems() -> None:
    assert main(["generate-data", "recipe.yaml", "-o", "files", "--processes", "1"]) == 0
    section = {"type": "generator", "task": {"type": "polynomial_addition", "max_degree": 2}, "count": 300}
    config = parse_component("data_source", section)
    source: Any = lookup("data_source", "generator")(None, config)  # type: ignore[call-arg]
    assert rows("files/train.jsonl") == [dict(row) for row in load_rows(source, "train")]


def test_text_lines_are_read_again() -> None:
    few = ["--processes", "1", "data.sources.count=20", "data.eval_sources.count=2"]
    assert main(["generate-data", "recipe.yaml", "-o", "text", "--format", "txt", *few]) == 0
    assert main(["generate-data", "recipe.yaml", "-o", "json", *few]) == 0
    assert rows("text/train.txt", type="text", separator=" # ") == rows("json/train.jsonl")


OWN = """
import time
from arctic_training import ComponentConfig, ProblemGenerator


class Slow(ProblemGenerator):
    name = "slow_of_the_tests"

    def __call__(self, seed):
        time.sleep(0.01)
        return f"{seed} # 1", "x"


class Dying(ProblemGenerator):
    name = "dying_of_the_tests"

    def __call__(self, seed):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(ProblemGenerator):
    name = "failing_of_the_tests"

    def __call__(self, seed):
        return str(1 / 0), "x"
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "there"], "there exists, and is not overwritten; give another name, or remove it"),
        (["-o", "recipe.yaml/new"], "recipe.yaml/new: cannot be written: "),
        (["-o", "new", "data.sources=[a/b]", "~data.eval_sources"], "recipe.yaml:5:3: data.sources: none is of type "),
        (["-o", "new", "data.sources.task={type: cumulative_sums, modulus: 2}"], "cumulative_sums: only "),
        (["-o", "new", "data.sources.task={type: slow_of_the_tests}", "--format", "txt"], " # 1': a text file has"),
        (["-o", "new", "data.sources.task={type: dying_of_the_tests}"], "dying_of_the_tests: a process that "),
        (["-o", "new", "data.sources.task={type: failing_of_the_tests}"], "ZeroDivisionError: division by zero"),
        (["-o", "new", "data.eval_sources.held_out=0.2"], "held_out is 0.1 and 0.2 in sources of one recipe, so that"),
        (["-o", "new", "data.sources.split=train[:3]"], "data.sources.split: 'train[:3]': expected a name; count says"),
        (
            ["-o", "new", "data.sources.task=sums"],
            "data.sources.task.type: no generator is named 'sums'; there are: cum",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_built_in(folder):
        Path("train.py").write_text(OWN)
        Path("there").mkdir()
        before = sorted(Path().rglob("*"))
        assert main(["generate-data", "recipe.yaml", "--processes", "2", *words]) == 2
        assert message in capsys.readouterr().err
        assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == before


def test_ctrl_c_leaves_nothing(folder: Path) -> None:
    Path("train.py").write_text(OWN)
    command = [sys.executable, "-m", "arctic_training", "generate-data", "recipe.yaml", "-o", "new", "--processes", "2"]
    command += ["data.sources.task={type: slow_of_the_tests}"]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True, stderr=subprocess.PIPE
    )
    while not (aside := list(Path().glob(".new-*/train.jsonl"))) and process.poll() is None:
        time.sleep(0.05)
    assert aside
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    assert process.stderr is not None and process.stderr.read() == b""
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == ["recipe.yaml", "train.py"]
