"""Running sums by a model's own answers: the data are what they say, and both figures rise."""

import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "grpo"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "start.yaml")
    return sys.modules[lookup("data_source", "running_sums").__module__]


def test_problems_are_answered_right_and_never_both_trained_on_and_held_out(project: ModuleType) -> None:
    trained, held = (list(islice(project.problems(split, 0), 500)) for split in ("train", "eval"))
    assert not {row["problem"] for row in trained} & {row["problem"] for row in held}
    assert len({row["problem"] for row in trained}) == 500
    for row in trained + held:
        numbers = [int(word) for word in row["problem"].split()]
        assert row["answer"] == " ".join(str(sum(numbers[: n + 1]) % 17) for n in range(4))
