"""Preferences by a judge of sentiment: what is held out, which completion is chosen, and who learns from the judge."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from arctic_training import Completion, get_config
from arctic_training.registry import lookup
from arctic_training.reward.weighted_sum import WeightedRewards

PROJECT = Path(__file__).parents[2] / "projects" / "reward"
GOOD, BAD, PLAIN = " wonderful, and I loved it.", " terrible, and I hated it.", " at the end of the road."


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "reward.yaml")
    return sys.modules[lookup("data_source", "judged_pairs").__module__]


def test_no_subject_is_both_trained_on_and_held_out(project: ModuleType) -> None:
    config = project.BeginningsConfig(type="beginnings")
    trained, held = (
        project.BeginningsSource(None, config).load(config, split)["prompt"] for split in ("train", "eval")
    )
    subjects = project.SUBJECTS.split()
    assert len({*subjects}) == len(subjects) and len({*trained, *held}) == 6 * len(subjects)
    named = [{one for one in subjects for text in texts if one in text.split()} for texts in (trained, held)]
    assert not named[0] & named[1] and len(named[1]) > 15
    assert project.beginnings("eval", 2) == held[:12]


def test_the_judge_prefers_the_more_positive_text(project: ModuleType) -> None:
    texts = [GOOD, BAD, PLAIN, GOOD, BAD, PLAIN, PLAIN, PLAIN, GOOD, GOOD + " Now."]
    pairs = list(project.compared([f"prompt {n}" for n in range(len(texts))], texts, 0.2))
    assert [row["prompt"] for row in pairs] == ["prompt 0", "prompt 2", "prompt 4"]
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [(GOOD, BAD), (GOOD, PLAIN), (PLAIN, BAD)]
    positive = lookup("scorer", "positive")(None)  # type: ignore[call-arg]
    assert [positive(text, "") for text in (GOOD, PLAIN, BAD)] == [1, 0, 0]  # type: ignore[operator]


def test_the_policy_does_not_learn_from_the_judge() -> None:
    config = get_config(PROJECT / "recipe.yaml", ["rewards.0={type: constant, value: 0.25}"])
    learned, measured = WeightedRewards(config.rewards)([completion(text) for text in (GOOD, BAD)])
    assert learned == [0.25, 0.25] and measured["positive"] == [1, 0]


def completion(text: str) -> Completion:
    return Completion("The hotel was", text, "", 16, False)


def test_distinct_pairs_of_words(project: ModuleType) -> None:
    assert project.distinct(["a b c d", "A b e"]) == 4 / 5
    assert project.distinct(["a b"] * 4) == 1 / 4 and project.distinct(["a", ""]) == 0
    scorer = project.DistinctScorer(None)
    assert scorer.corpus_score(["a b", "a b"], ["", ""]) == 0.5 and scorer("a b", "") == 1
