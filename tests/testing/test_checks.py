"""The checks for users: they pass for what keeps the promise, and name the first thing that does not."""

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from arctic_training import Callback, PPOTrainer, SFTTrainer, token_losses
from arctic_training.testing import check_cut, check_resume
from arctic_training.testing.runs import first_difference
from tests.contract.cases import recipe


class MeanOfMicroBatch(SFTTrainer):
    name = "test_mean_of_micro_batch"

    def loss(self, batch: Any) -> torch.Tensor:
        return token_losses(self.model, batch).mean()


class Forgetful(SFTTrainer):
    """The weight of its loss depends on how many steps this process has taken."""

    name = "test_forgetful"
    calls = 0

    def loss(self, batch: Any) -> torch.Tensor:
        self.calls += 1
        return super().loss(batch) * (1 + self.calls / 100)


class Remembering(Forgetful):
    """The same, with the number in the checkpoint."""

    name = "test_remembering"

    def extra_state_dict(self) -> dict[str, Any]:
        return {"calls": self}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Any) -> None:
        self.calls = state["calls"]


class Watched(PPOTrainer):
    """Counts what it begins and completes in each step."""

    name = "test_watched"
    counts: ClassVar[Counter[tuple[int, str]]] = Counter()

    def build_rollout(self, *args: Any) -> Any:
        self.counts[self.progress.step, "rollout"] += 1
        return super().build_rollout(*args)

    def generate_rollouts(self, *args: Any) -> Any:
        self.counts[self.progress.step, "prompts"] += 1
        return super().generate_rollouts(*args)

    def update(self, role: str, loss: torch.Tensor) -> None:
        self.counts[self.progress.step, role] += 1
        super().update(role, loss)


class Counting(Callback):
    """Has a state that no weight or metric depends on, and loses it."""

    name = "test_counting"
    steps = 0

    def post_after_update(self) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Any) -> None: ...


def sft(folder: Path, **keys: Any) -> dict[str, Any]:
    return recipe("sft", folder, **keys)


def test_a_trainer_that_resumes_passes(tmp_path: Path) -> None:
    evaluating = ["data.train_eval_split=[0.7, 0.3]", "eval_interval=2", "evaluate_last=true"]
    assert check_resume(sft(tmp_path), evaluating) == 2
    assert check_resume(sft(tmp_path, type="test_remembering"), steps=5, thorough=True) == 3
    assert not (tmp_path / "run").exists()


def test_state_that_is_in_no_checkpoint_is_found_by_what_it_changes(tmp_path: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"after interruptions in steps \[2, 3\], .* step 2 logs: loss: .*extra_st"
    ):
        check_resume(sft(tmp_path, type="test_forgetful"))


def test_state_that_changes_nothing_yet_is_found_in_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ends differently: state\.callback\.test_counting\.steps: 4 and"):
        check_resume(sft(tmp_path, callbacks=["test_counting"]))


def test_completions_and_the_steps_of_two_roles_are_interrupted(tmp_path: Path) -> None:
    """The recipe takes two steps of each role in a window; a step without a break is counted twice, as often as run."""
    Watched.counts.clear()
    assert check_resume(recipe("ppo", tmp_path, type=Watched.name)) == 3
    names = ("prompts", "rollout", "model", "critic")
    of_step = [{name: Watched.counts[step, name] for name in names} for step in range(4)]
    assert of_step[0] == of_step[3] == {"prompts": 2, "rollout": 2, "model": 4, "critic": 4}
    # before the first rollout is built, and again before the first step
    assert of_step[1] == {"prompts": 4, "rollout": 3, "model": 4, "critic": 4}
    # when the policy is a step ahead of its critic
    assert of_step[2] == {"prompts": 3, "rollout": 3, "model": 5, "critic": 4}


def test_a_run_of_one_step_cannot_be_interrupted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a run of 1 steps cannot be interrupted"):
        check_resume(sft(tmp_path), steps=1)


def test_an_exact_mean_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    assert check_cut(sft(tmp_path, micro_batch_size=4)) == 2
    assert check_cut(recipe("gan", tmp_path / "gan", micro_batch_size=4), cuts=[(2, 2)]) == 1


def test_a_mean_of_means_depends_on_the_cut(tmp_path: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"micro_batch_size 1 x 4 instead of 4 x 1: the .*; divide a sum over labels"
    ):
        check_cut(sft(tmp_path, micro_batch_size=4, type="test_mean_of_micro_batch"))


def test_cuts_that_are_no_cuts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a global batch of 1 rows on each rank has no such cuts"):
        check_cut(sft(tmp_path, micro_batch_size=1))
    with pytest.raises(ValueError, match=r"has no such cuts: \[\(3, 2\)\]"):
        check_cut(sft(tmp_path), cuts=[(3, 2)])
    with pytest.raises(ValueError, match=r"set data\.pack_samples=false"):
        check_cut(sft(tmp_path, micro_batch_size=4), ["data.pack_samples=true"])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": [1.0, {"b": float("nan")}]}, {"a": [1.0, {"b": float("nan")}]}, ""),
        ({"a": [1.0, {"b": 2}]}, {"a": [1.0, {"b": 3}]}, "a.1.b: 2 and 3"),
        ({"a": 1}, {}, ": a is in one of them only"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), ": 1 of 2 elements differ, by 0.5 at most"),
        (torch.zeros(2), torch.zeros(3), ": torch.float32 [2] and torch.float32 [3]"),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), ""),
        ([1, 2], [1], ": [1, 2] and [1]"),
    ],
)
def test_the_first_difference(one: Any, other: Any, expected: str) -> None:
    assert first_difference(one, other) == expected
