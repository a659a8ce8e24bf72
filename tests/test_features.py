"""What the table of features shows, exists: commands, recipes, tests."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config
from arctic_training.cli.commands import COMMANDS, parse_command
from arctic_training.launch.arguments import parse
from tests.processes import ROOT

ROWS = re.findall(
    r"^\| (.+) \| (yes|part|no) \| (.*)\|$", (ROOT / "docs" / "features.md").read_text("utf-8"), re.MULTILINE
)
SHOWN = sorted({code for *_, shown in ROWS for code in re.findall(r"`([^`]+)`", shown)})
OTHERS = re.findall(
    r"^\| (.+?) \| (.+) \| (.+) \|$", (ROOT / "docs" / "other_trainers.md").read_text("utf-8"), re.MULTILINE
)
PROGRAMS = ("arctic_training ", "make ", "python ")


def test_every_feature_that_is_here_is_shown() -> None:
    assert all(shown.strip() for _, mark, shown in ROWS if mark != "no")
    assert Counter(mark for _, mark, _ in ROWS)["yes"] >= 55 and len(ROWS) == 67


def test_every_feature_that_is_here_stands_beside_those_of_others() -> None:
    features = [feature for feature, mark, _ in ROWS if mark == "yes"]
    assert [feature for feature, *_ in OTHERS if feature not in ("feature", "---")] == features
    paths = {path for *_, here in OTHERS for path in re.findall(r"tests/[\w/]+\.py", here)}
    assert paths and all((ROOT / path).is_file() for path in paths)


def test_the_readme_counts_the_features() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"Of {len(ROWS)} features" in text
    assert f"[{sum(mark == 'yes' for _, mark, _ in ROWS)} are here]" in text


@pytest.mark.parametrize("command", [code for code in SHOWN if code.startswith(PROGRAMS)])
def test_a_command_exists(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif program == "python":
        assert words[:2] == ["-m", "pytest"] and all((ROOT / path).is_file() for path in words[2:])
    elif words[0] in COMMANDS:
        parse_command(words[0], words[1:])
    else:
        assert not parse(words).launcher_args


@pytest.mark.parametrize("sections", [code for code in SHOWN if re.match(r"[a-z_]+: ", code)])
def test_the_sections_of_a_recipe_are_read(sections: str, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"type": "sft", "model": {"name_or_path": "m"}, "train_iters": 9, "eval_interval": 3}
    recipe["data"] = {"sources": ["a/b"], "eval_sources": ["a/c"]}
    for name, value in yaml.safe_load(sections).items():
        recipe[name] = recipe.get(name, {}) | value if isinstance(value, dict) else value
    if recipe["type"] in ("grpo", "reinforce", "ppo"):
        recipe["rewards"] = ["exact_match"]
    get_config(recipe)
