"""The README opens with two commands, and its figures are those of the pages that they come from.

`test_docs` runs its blocks.
"""

import re

from tests.faults.matrix import FAULTS
from tests.page_commands import commands
from tests.processes import ROOT
from tests.test_docs import blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [" ".join(words) for block in blocks(README) if block.kind == "sh" for words in commands(block.text)]


def cells(page: str, first: str) -> list[str]:
    """Returns the other cells of the row of a table that begins with ``first``."""
    row = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", page, re.MULTILINE)
    assert row, first
    return [cell.strip() for cell in row[1].split("|")]


def test_it_opens_with_the_two_commands() -> None:
    assert COMMANDS[:2] == ["make quickstart", "make test"]
    assert README.split("```")[1] == "sh\nmake quickstart\nmake test\n"


def test_every_target_it_names_is_there_and_runs_in_ci_or_is_measured_elsewhere() -> None:
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in COMMANDS:
        if command.startswith("make "):
            assert command in ci, command


def test_its_figures_are_those_of_the_benchmarks() -> None:
    """Ours, TRL packed and ArcticTraining 0.8."""
    benchmarks = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").partition("## Latest figures")[2]
    for ours, theirs in (
        ("tokens per CPU second", "tokens per CPU s"),
        ("ms per small step", "ms per small step"),
        ("prepared rows per CPU second", "prepared rows per CPU s"),
        ("peak memory, MB", "peak memory, MB"),
    ):
        measured = cells(benchmarks, theirs)
        assert cells(README, ours) == [measured[0], measured[4], measured[5]]


def test_it_counts_the_faults() -> None:
    assert f"| Faults | {len(FAULTS)} faults" in README


def test_its_examples_are_run() -> None:
    assert len([command for command in COMMANDS if command.startswith("arctic_training ")]) == 3
