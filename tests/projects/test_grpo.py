"""Running sums by a model's own answers: the data are what they say, and both figures rise."""

import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from arctic_training import get_config
from arctic_training.errors.types import TrainingError
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


def test_a_start_that_was_never_good_enough_fails(project: ModuleType) -> None:
    callback = project.StopAtSuccess(project.UntilConfig(success=0.9))
    run = SimpleNamespace(finished=False, stop_requested=False, progress=SimpleNamespace(step=7))
    run.stop = lambda reason: setattr(run, "finished", True)
    callback.post_evaluate(run, {"exact_match/eval": 0.89})
    with pytest.raises(TrainingError, match=r"^until\.success: 0\.9 was not reached in 7 steps"):
        callback.post_train(run)
    run.stop_requested = True  # it goes on later
    callback.post_train(run)
    run.stop_requested = False
    callback.post_evaluate(run, {"exact_match/eval": 0.9})
    callback.post_train(run)
