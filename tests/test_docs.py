"""The pages for people: what they show is run, and what they name exists.

A page is worked through from top to bottom, in a folder and a process of its own. A block whose first line is
``# path`` is written to that file, and so is one below a line that ends with "`path`:". Other blocks are run: ``sh`` by
a shell that hands on each `arctic_training`, ``python`` as it stands, and ``yaml`` is read as sections of a recipe. A
``console`` block is what the commands above it have printed, but for numbers. Models and data sets of the hub are small
ones on disk.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from arctic_training import get_config
from arctic_training.cli.main import main
from tests import tiny
from tests.forkserver import fork, kill
from tests.processes import HANG, ROOT
from tests.test_recipes import PLAIN
from tests.tracked import tracked

PAGES = tracked("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/guides/*.md", "projects/*/README.md")
RUN = tracked("README.md", "docs/index.md", "docs/getting_started*.md", "docs/guides/*.md")
COMMANDS = ("arctic_training", "git", "make", "pip", "python", "torchrun", "wandb")
ENCODER_DECODER = "google-t5/t5-small"
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "projects/quickstart/runs/recipe/checkpoints/huggingface/step_50")
TEXTS = ("pretrain/a.txt", "pretrain/b.txt")
ROWS = {
    "HuggingFaceFW/fineweb-edu/sample/10BT/rows.jsonl": {"text": "one and two " * 20},
    "allenai/sciq/train.jsonl": {"question": "what is one and one?", "correct_answer": "two", "support": ""},
    "stream/rows.jsonl": {"text": "three and four " * 20},
}


class Block(NamedTuple):
    kind: str
    text: str
    file: str
    """Where it is written; empty for one that is run."""


def blocks(page: str) -> Iterator[Block]:
    """Returns the fenced blocks of a page, in order."""
    for before, kind, text in re.findall(r"([^\n]*)\n*^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        named = re.match(r"# (\S+\.(?:yaml|py))\n", text) or re.search(r"`(\S+)`:$", before)
        yield Block(kind, text, named[1] if named else "")


def commands(block: str) -> list[list[str]]:
    """Returns the commands that a shell would start, each with its words."""
    record = 'printf "%s\\0" {0} "$@" $\'\\1\''
    functions = "\n".join(f"function {name} {{ {record.format(name)}; }}" for name in (*COMMANDS, "."))
    done = subprocess.run(["bash", "-euc", f"{functions}\n{block}"], stdout=subprocess.PIPE, check=True, text=True)
    return [one.strip("\0").split("\0") for one in done.stdout.split("\1")[:-1]]


def make_folder(folder: Path, model: Path) -> None:
    """Makes the models, data sets and files that pages take for granted."""
    for name in MODELS:
        shutil.copytree(model, folder / name)
    tiny.save_encoder_decoder(folder / ENCODER_DECODER)
    for name in ("", "elastic", "exam", "sweep", "tracked"):
        (folder / name).mkdir(exist_ok=True)
        tiny.save_chats(folder / name / "chats.jsonl", 8)
        tiny.save_chats(folder / name / "held_out.jsonl", 2, seed=1)
    chats = folder / "HuggingFaceH4" / "ultrachat_200k" / "data"
    chats.mkdir(parents=True)
    tiny.save_chats(chats / "train_sft-00000-of-00001.jsonl", 200)
    for name, row in ROWS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{json.dumps(row)}\n" * 20)
    config = "---\nconfigs:\n- config_name: sample-10BT\n  data_files: sample/10BT/*\n---\n"
    (folder / "HuggingFaceFW" / "fineweb-edu" / "README.md").write_text(config)
    for name in TEXTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("one two three four five six seven " * 200)
    for block in blocks((ROOT / "docs" / "getting_started.md").read_text("utf-8")):
        if block.kind == "json":
            (folder / block.file).parent.mkdir(exist_ok=True)
            (folder / block.file).write_text(block.text)
    data = {"sources": ["chats.jsonl"], "max_length": 512}
    recipe = {"model": {"name_or_path": MODELS[0]}, "data": data, "train_iters": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def work_through(page: str, folder: Path, log: Path) -> None:
    """Does what a page says, in a process of its own that prints to ``log``."""
    os.chdir(folder)
    start = 0
    for block in blocks(page):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.kind == "sh":
            start = log.stat().st_size
            _run(block.text)
        elif block.kind == "python":
            exec(compile(block.text, "page", "exec"), {"__name__": "__main__"})
        elif block.kind == "yaml":
            get_config(PLAIN | yaml.safe_load(block.text))
        elif block.kind == "console":
            sys.stdout.flush()
            _require_printed(block.text, log.read_bytes()[start:].decode())


def _run(block: str) -> None:
    for name, *words in commands(block):
        if name == "arctic_training":
            code = main(words)
            assert code == 2 * ("# exit code 2" in block), f"arctic_training {' '.join(words)}: exit code {code}"


def _require_printed(shown: str, printed: str) -> None:
    """Raises `AssertionError` for a line that was not printed, or not in that order. ``...`` stands for any lines."""
    rest = iter(_without_numbers(line) for line in printed.splitlines())
    for line in filter(None, map(_without_numbers, shown.splitlines())):
        assert line == "..." or line in rest, f"not printed, or not there: {line}"


def _without_numbers(line: str) -> str:
    return re.sub(r"\d[\d.,:e+-]*", "0", line.strip())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with room for the longest rows of the pages."""
    return tiny.save_model(tmp_path_factory.mktemp("docs") / "model", max_position_embeddings=4096)


def identity(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUN, ids=identity)
def test_what_a_page_shows_runs(page: Path, model: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "folder", tmp_path / "log"
    make_folder(folder, model)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    process = fork(work_through, (page.read_text("utf-8"), folder, log), environment, log)
    process.join(HANG)
    kill(process)
    assert process.exitcode == 0, log.read_text()


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_what_a_page_names_exists(page: Path) -> None:
    """Files that it links to, tests and files that it names, targets of make, and the syntax of its scripts."""
    text = page.read_text("utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose)
    generated = {ROOT / "docs" / "recipe.md"}
    missing = [one for one in links if "://" not in one and page.parent / one not in generated]
    assert [one for one in missing if not (page.parent / one).exists()] == []
    named = re.findall(r"\b(?:tests|arctic_training|benchmarks|projects)/[\w./]*\w", prose)
    assert [one for one in named if "/runs/" not in one and not (ROOT / one).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for block in blocks(text):
        if block.kind == "bash":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_the_headings_that_a_page_links_to_exist(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
        linked = (page.parent / path).resolve() if path else page
        if linked != ROOT / "docs" / "recipe.md":
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in headings], anchor


def test_every_term_of_the_glossary_has_one_definition() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = [entry.splitlines() for entry in text.split("\n\n") if re.search(r"^: ", entry, re.M)]
    names = [lines[0] for lines in terms]
    assert len(names) == len({*names}) > 50
    assert all([line[:2] == ": " for line in lines] == [False, True, *[False] * (len(lines) - 2)] for lines in terms)
