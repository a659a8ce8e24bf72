"""Every recipe in the repository can be read."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config
from tests import tracked as files
from tests.processes import ROOT
from tests.tracked import tracked

YAML = tracked("projects/**/*.y*ml", "docs/**/*.y*ml", "benchmarks/**/*.y*ml", "arctic_training/recipes/*.y*ml")
# figures.yaml says what a project's recipes reach, and lexers are sections that recipes extend
RECIPES = [path for path in YAML if path.name != "figures.yaml" and path.parent.name != "lexers"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_recipe_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = get_config(path)
    assert config.recipe_path == path
    assert get_config(config.dump()).dump() == config.dump()  # what is written to the run folder is a recipe again


PAGES = tracked("README.md", "docs/*.md", "projects/*/README.md")
SHOWN = [
    pytest.param(yaml.safe_load(block), id=f"{page.relative_to(ROOT)}, {number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE), 1
    )
]
PLAIN: dict[str, Any] = {
    "model": {"name_or_path": "model"},
    "data": {"sources": ["rows.jsonl"], "train_eval_split": [0.9, 0.1]},
    "evaluate_last": True,
}


@pytest.mark.parametrize("shown", SHOWN)
def test_what_the_pages_show_is_read(shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole recipe, or some sections of one."""
    monkeypatch.chdir(ROOT)
    assert get_config(shown if {"model", "data"} <= shown.keys() else PLAIN | shown)


def test_there_are_recipes() -> None:
    assert RECIPES and len(SHOWN) >= 7


def test_what_other_commands_leave_is_no_recipe_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of another trainer, recipes of runs, pages that are built."""
    for name in ("benchmarks/own.yaml", "benchmarks/.venv-other/lib/recipe.yaml", "benchmarks/new.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert len(tracked("benchmarks/**/*.yaml")) == 3  # a copy without git
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "benchmarks/own.yaml"], cwd=tmp_path, check=True)
    assert tracked("benchmarks/**/*.yaml") == [tmp_path / "benchmarks" / "own.yaml"]
