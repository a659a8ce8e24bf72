"""Preferences on sums modulo 17: the data are what they say, and both figures rise."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from arctic_training import get_config
from arctic_training.errors.types import TrainingError
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "dpo"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "start.yaml")
    return sys.modules[lookup("data_source", "sums").__module__]


def test_questions_are_answered_right_and_never_both_trained_on_and_held_out(project: ModuleType) -> None:
    trained, held = project.take(500, "train"), project.take(500, "eval", seed=1)
    assert not {question for question, _ in trained} & {question for question, _ in held}
    assert len({question for question, _ in trained}) == 500
    for question, answer in trained + held:
        numbers = [int(word) for word in question.removesuffix(" =").split()]
        assert answer == " " + " ".join(str(sum(numbers[: n + 1]) % 17) for n in range(4))
    assert project.take(500, "train") == trained


def test_a_start_that_was_never_good_enough_fails(project: ModuleType) -> None:
    callback = project.StopAtSuccess(project.UntilConfig(success=0.9))
    run = SimpleNamespace(finished=False, stop_requested=False, progress=SimpleNamespace(step=7))
    run.stop = lambda reason: setattr(run, "finished", True)
    callback.post_evaluate(run, {"success": 0.89})
    with pytest.raises(TrainingError, match=r"^sums_until\.success: 0\.9 was not reached in 7 steps"):
        callback.post_train(run)
    run.stop_requested = True  # it goes on later
    callback.post_train(run)
    run.stop_requested = False
    callback.post_evaluate(run, {"success": 0.9})
    callback.post_train(run)
