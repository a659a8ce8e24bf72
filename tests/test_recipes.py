"""Every recipe in the repository can be read."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    path
    for room in ("projects", "docs", "benchmarks")
    for path in (ROOT / room).rglob("*.y*ml")
    if "runs" not in path.parts
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_recipe_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = get_config(path)
    assert config.recipe_path == path
    assert get_config(config.dump()).dump() == config.dump()  # what is written to the run folder is a recipe again


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "projects").glob("*/README.md"))]
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
