"""Every recipe in the repository can be read."""

from pathlib import Path

import pytest

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


def test_there_are_recipes() -> None:
    assert RECIPES
