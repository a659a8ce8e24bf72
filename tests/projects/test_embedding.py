"""Search for programs: the pairs are what they say, and none is both trained on and held out."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "embedding"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "programs").__module__]


def test_questions_are_trained_on_or_held_out(project: ModuleType) -> None:
    trained, held = (dict(project.programs(split)) for split in ("train", "eval"))
    assert len(trained) > 2000 and len(held) > 500 and not trained.keys() & held.keys()
    assert 0.2 < len(held) / len(held | trained) < 0.3


def test_programs_are_python_without_comments(project: ModuleType) -> None:
    for question, program in project.programs("eval")[:50]:
        assert question == " ".join(question.split()) and "main_solution" in program
        ast.parse(program)
    assert project.without_comments("x = 1  # one\n# two\ny = '#'") == "x = 1\ny = '#'"
    assert project.without_comments("no python at all") == ""
