"""Running sums by a model's own completions: a start that was never good enough fails."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from arctic_training import TrainingError, get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "grpo"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "start.yaml")
    return sys.modules[lookup("callback", "until").__module__]


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
