"""Rewards: how a recipe names them, what they add up to, and what is raised for one that fails."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

import arctic_training.reward.constant  # noqa: F401  registers the reward
from arctic_training.config.checks.problems import Problems
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.types import RecipeError, ScoringError, TrainingError
from arctic_training.evaluation.scorer import Scorer
from arctic_training.reward.reward import Completion, Reward, RewardConfig
from arctic_training.reward.sections import read_rewards
from arctic_training.reward.weighted_sum import WeightedRewards


def completion(generated: str = "7", *, tokens: int = 2, ended: bool = True) -> Completion:
    return Completion("3 + 4 =", generated, "7", tokens, ended)


class NearConfig(ComponentConfig):
    threshold: float = 0.5


class Near(Scorer):
    """A scorer with a key that rewards have too."""

    name = "near_for_tests"
    config_type = NearConfig

    def __call__(self, generated: str, reference: str) -> float:
        return self.config.threshold


class GivenConfig(RewardConfig):
    values: Any = None


class Given(Reward):
    """Returns the values of its section."""

    name = "given_for_tests"
    config_type = GivenConfig

    def __call__(self, completions: Sequence[Completion]) -> Any:
        if isinstance(self.config.values, str):
            raise KeyError(self.config.values)
        return self.config.values


def rewards(*sections: Any) -> WeightedRewards:
    return WeightedRewards(read_rewards(list(sections)))


def returning(*values: float | None, **more: Any) -> dict[str, Any]:
    return {"type": "given_for_tests", "values": list(values), **more}


def test_scorers_are_rewards_under_their_own_names() -> None:
    sums, parts = rewards(
        "exact_match", {"type": "numeric", "which": "first", "weight": 0.5}, {"type": "score", "scorer": "contains"}
    )([completion(), completion("7 8"), completion("no")])
    assert parts == {"exact_match": [1, 0, 0], "numeric": [1, 1, 0], "contains": [1, 1, 0]}
    assert sums == [2.5, 1.5, 0]


def test_weights_thresholds_and_bounds() -> None:
    sums, parts = rewards(
        returning(-5, 0.4, 9, clip=[-1, 2], weight=10),
        returning(-5, 0.4, 9, threshold=0.4),
        returning(1, 2, 3, weight=-1),
    )([completion()] * 3)
    assert parts == {
        "given_for_tests": [-1, 0.4, 2],
        "given_for_tests#2": [0, 1, 1],
        "given_for_tests#3": [1, 2, 3],
    }
    assert sums == pytest.approx([-11, 3, 18])


def test_a_reward_that_gives_none_abstains() -> None:
    sums, parts = rewards(
        returning(1, None, None, weight=2),
        returning(None, 0.4, None, threshold=0.5),
        returning(-9, -9, None, clip=[-1, 1]),
    )([completion()] * 3)
    assert sums == pytest.approx([2 - 1, 0 - 1, math.nan], nan_ok=True)
    assert parts["given_for_tests"] == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert parts["given_for_tests#2"] == pytest.approx([math.nan, 0, math.nan], nan_ok=True)
    assert parts["given_for_tests#3"] == pytest.approx([-1, -1, math.nan], nan_ok=True)


class Service(Reward):
    """Fails the first times, and always for some completions."""

    name = "service_for_tests"
    calls: ClassVar[list[int]] = []
    away: ClassVar[int] = 0

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        self.calls.append(len(completions))
        if len(self.calls) <= self.away or any(one.generated == "bad" for one in completions):
            raise ConnectionError("nobody answers")
        return [1.0] * len(completions)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    kept: list[float] = []
    monkeypatch.setattr("arctic_training.generation.scoring.time.sleep", kept.append)
    monkeypatch.setattr(Service, "calls", [])
    return kept


def test_a_reward_that_raises_is_asked_again(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "away", 3)
    assert rewards({"type": "service_for_tests", "retries": 3})([completion()] * 2)[0] == [1, 1]
    assert Service.calls == [2] * 4 and pauses == [1, 2, 4]
    monkeypatch.setattr(Service, "away", 99)
    with pytest.raises(ScoringError, match=r"service_for_tests fails for the completion '7' of '3 [+] 4 ='"):
        rewards("service_for_tests")([completion()] * 2)
    assert pauses == [1, 2, 4, 1, 2]


def test_the_completion_on_which_a_reward_raises_is_named(pauses: list[float]) -> None:
    with pytest.raises(ScoringError) as caught:
        rewards("ended", {"type": "service_for_tests", "retries": 0})(
            [completion(), completion("bad"), completion("8")]
        )
    assert str(caught.value) == (
        "rewards.1: service_for_tests fails for the completion 'bad' of '3 + 4 =':\nConnectionError: nobody answers"
    )
    assert not pauses


def test_a_constant_is_the_reward_of_every_completion() -> None:
    sums, parts = rewards({"type": "constant", "value": -0.5, "weight": 4}, "constant")(
        [completion(), completion("no")]
    )
    assert parts == {"constant": [-0.5, -0.5], "constant#2": [1, 1]}
    assert sums == [-1, -1]
    assert rewards("constant")([]) == ([], {"constant": []})


def test_length_and_end() -> None:
    completions = [completion(tokens=n, ended=n < 5) for n in (1, 2, 3, 5, 6, 7)]
    _, parts = rewards({"type": "length", "free": 2, "limit": 6}, "ended")(completions)
    assert parts == {"length": [0, 0, -0.25, -0.75, -1, -1], "ended": [1, 1, 1, 0, 0, 0]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "rewards.1: given_for_tests returned 1 numbers for 2 completions; expected one for each"),
        (0.5, "rewards.1: given_for_tests returned 0.5; expected a number for each completion"),
        (None, "rewards.1: given_for_tests returned None; expected a number for each completion"),
        ([1.0, [2.0]], "rewards.1: given_for_tests returned [1.0, [2.0]]; expected a number for each completion"),
        ([1.0, float("nan")], "rewards.1: given_for_tests returned nan for the completion '8' of '3 + 4 ='"),
        ([float("inf"), 1.0], "rewards.1: given_for_tests returned inf for the completion '7' of '3 + 4 ='"),
    ],
)
def test_a_reward_that_cannot_tell(values: Any, message: str) -> None:
    section = GivenConfig.model_construct(type="given_for_tests", values=values, weight=1.0, threshold=None, clip=None)
    weighted = WeightedRewards([*read_rewards("exact_match"), section])
    with pytest.raises(TrainingError) as caught:
        weighted([completion(), completion("8")])
    assert str(caught.value) == message


def test_a_rehearsal_tells_it_before_the_run() -> None:
    rewards(returning(1, 2)).dry_run(completion(), 2)
    with pytest.raises(RecipeError, match=r"^rewards.0: given_for_tests returned 2 numbers for 3 completions"):
        rewards(returning(1, 2)).dry_run(completion(), 3)
    with pytest.raises(
        RecipeError, match=r"rewards.1: given_for_tests fails on the reference of the first sample:\nKeyE"
    ):
        rewards("ended", returning() | {"values": "gone"}).dry_run(completion(), 2)


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        ("exact_mach", "0.type", "no reward is named 'exact_mach'; did you mean 'exact_match'? there are: "),
        ({"type": "numeric", "wich": "first"}, "0.wich", "unknown; did you mean 'which'?"),
        ({"type": "numeric", "weight": "much"}, "0.weight", "'much' is not a number"),
        ({"type": "constant", "value": float("nan")}, "0.value", "nan"),
        ({"type": "ended", "clip": [1, 0]}, "0.clip", "1 to 0: the lower bound comes first"),
        ({"type": "length", "free": 9, "limit": 9}, "0.free", "9 tokens, and the limit is 9; it must be lower"),
        (
            {"type": "near_for_tests", "threshold": 0.9},
            "0.threshold",
            "near_for_tests has a key of this name too; write",
        ),
        (7, "0", "7 should be a name, or a mapping with a type"),
    ],
)
def test_sections_that_are_none(section: Any, path: str, message: str) -> None:
    with pytest.raises(Problems) as caught:
        read_rewards([section])
    (problem,) = caught.value.problems
    assert ".".join(problem.path) == path
    assert problem.text.startswith(message)
