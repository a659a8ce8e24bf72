"""The pages for people: what they show is run, and what they name exists.

A page is worked through from top to bottom, in a folder and a process of its own. A block whose first line is
``# path`` is written to that file, and so is one below a line that ends with "`path`:". Other blocks are run: ``sh`` by
a shell that hands on each `arctic_training`, ``python`` as it stands, and ``yaml`` is read as sections of a recipe. A
``console`` block is what the commands above it have printed, but for numbers, and a ``text`` block has files that they
have written, with a remark on each. Models and data sets of the hub are small ones on disk.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from arctic_training import get_config
from arctic_training.checkpoint.compatibility import CompatibilityGuard
from arctic_training.errors.types import ResumeError
from tests import tiny
from tests.forkserver import fork, kill
from tests.page_commands import check, check_requeue, commands, run
from tests.processes import HANG, ROOT
from tests.test_recipes import PLAIN
from tests.tracked import tracked

PAGES = tracked("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/guides/*.md", "projects/*/README.md")
RUN = [
    *tracked("README.md", "docs/index.md", "docs/getting_started*.md", "docs/guides/*.md"),
    *(ROOT / "docs" / f"{name}.md" for name in ("checkpoints", "data", "gpu", "migration", "multi_node", "trainers")),
]
VALIDATED = ("multi_node.md", "trainers.md")
"""Pages whose commands take several processes: their recipes are validated."""
ELSEWHERE = {
    ("CONTRIBUTING.md", "sh"): "the commands of this repository take minutes; what they name exists",
    ("docs/checkpoints.md", "text"): "test_the_refusal_of_another_run_is_as_shown",
    ("docs/extending.md", "python"): "test_reference_pages trains with the classes, test_hook_names with one",
    (
        "docs/multi_node.md",
        "bash",
    ): "needs SLURM: test_the_script_of_sbatch_requeues_by_exit_code has stubs of it",
    ("docs/reliability.md", "yaml"): "test_recipes reads it",
    (
        "docs/troubleshooting.md",
        "text",
    ): "documented_messages writes it, or test_reference_pages finds it in the code",
    (
        "projects",
        "sh",
    ): "make figures trains for minutes, tests/projects is short; what they name exists",
    ("projects", "python"): "it loads what such a training leaves; getting_started.md has the same lines",
}
"""Blocks that are not run from their page, and why not, or where they are."""
ENCODER_DECODER = "google-t5/t5-small"
_SAVED = "runs/recipe/checkpoints/huggingface"
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", f"{_SAVED}/step_40", f"projects/quickstart/{_SAVED}/step_50")
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


def make_folder(folder: Path, model: Path) -> None:
    """Makes the models, data sets and files that pages take for granted."""
    for name in MODELS:
        shutil.copytree(model, folder / name)
    tiny.save_encoder_decoder(folder / ENCODER_DECODER)
    for name in ("", "elastic", "exam", "mine", "sweep", "tracked"):
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
    for name in ("", "mine"):
        (folder / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def work_through(page: str, folder: Path, log: Path, trains: bool) -> None:
    """Does what a page says, in a process of its own that prints to ``log``; without training if not ``trains``."""
    os.chdir(folder)
    start = 0
    for block in blocks(page):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.kind == "sh":
            start = log.stat().st_size
            run(block.text, trains=trains)
        elif block.kind == "python":
            exec(compile(block.text, "page", "exec"), {"__name__": "__main__"})
        elif block.kind == "yaml":
            sections = yaml.safe_load(block.text)
            get_config(sections if {"model", "data"} <= sections.keys() else PLAIN | sections)
        elif block.kind == "text":
            for name in re.findall(r"^([\w/]+(?:\.\w+|/))  +\S", block.text, re.MULTILINE):  # a list of files
                assert [*Path().rglob(name.rstrip("/"))], name
        elif block.kind == "console":
            sys.stdout.flush()
            _require_printed(block.text, log.read_bytes()[start:].decode())


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
    arguments = (page.read_text("utf-8"), folder, log, page.name not in VALIDATED)
    process = fork(work_through, arguments, environment, log)
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
    for target in re.findall(r"`make ([a-z-]+)", text):
        check("make", target)
    for block in blocks(text):
        if block.kind == "sh" and page not in RUN:
            for words in commands(block.text):
                check(*words)


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_every_block_is_run_or_has_a_reason(page: Path) -> None:
    text = page.read_text("utf-8")
    kinds, directives = {block.kind for block in blocks(text)}, len(re.findall(r"^```\{", text, re.MULTILINE))
    assert len([*blocks(text)]) * 2 == len(re.findall(r"^ *```(?:\w|$)", text, re.MULTILINE)) - directives
    named = {kind for name, kind in ELSEWHERE if page == ROOT / name or name == page.relative_to(ROOT).parts[0]}
    assert kinds - named <= ({"console", "json", "python", "sh", "text", "yaml"} if page in RUN else set())
    for block in blocks(text):
        if block.kind == "python":
            compile(block.text, "page", "exec")


def test_the_script_of_sbatch_requeues_by_exit_code(tmp_path: Path) -> None:
    """After the exit codes after which the table below the script says so."""
    text = (ROOT / "docs" / "multi_node.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \| .* \| yes \|$", text, re.MULTILINE)
    (script,) = (block.text for block in blocks(text) if block.kind == "bash")
    check_requeue(script, tmp_path, [int(code) for row in rows for code in row.split(",")])
    ((_, *words),) = commands(script.replace("srun --kill-on-bad-exit=0 ", "").partition("code=")[0])
    assert words == ["recipe.yaml"]


def test_the_refusal_of_another_run_is_as_shown() -> None:
    (shown,) = (one.text for one in blocks((ROOT / "docs" / "checkpoints.md").read_text("utf-8")) if one.kind == "text")
    folder, saved, now = re.match(r"(\S+) is.*?saved (\S+), now (\S+)\n", shown, re.DOTALL).groups()  # type: ignore[union-attr]
    samples = re.search(r"data\.samples: saved (.*), now (.*)\n", shown)
    assert samples is not None
    runs = [
        CompatibilityGuard(get_config(PLAIN | {"optimizer": {"lr": float(rate)}}), {"data.samples": prints})
        for rate, prints in ((saved, samples[1]), (now, samples[2]))
    ]
    with pytest.raises(ResumeError) as refused:
        runs[1].check_compatible(Path(folder), {"run": runs[0].run_description})
    assert str(refused.value) == shown.strip()


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
