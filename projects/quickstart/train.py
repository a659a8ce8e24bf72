"""The quick start's own classes: where its model and its data come from, and what it prints."""

import hashlib
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from arctic_training import Callback, DataSource, DataSourceConfig
from arctic_training.distributed.process_group import is_main
from arctic_training.errors.types import DataError, MissingDependencyError


class ReasoningGymConfig(DataSourceConfig):
    task: str
    """Name of a task of reasoning-gym."""
    options: dict[str, Any] = {}
    """How hard the task is: what ``reasoning_gym.create_dataset`` takes."""
    count: int = Field(default=100, ge=1)
    """Questions."""
    seed: int = Field(default=0, ge=0)
    shots: int = Field(default=0, ge=0)
    """Solved training questions that each question comes after, as earlier turns of the chat."""


class ReasoningGymSource(DataSource):
    """Generated questions and their answers.

    A question's own hash says whether it is trained on or held out, so that no seed, count or shots can mix the two.
    """

    name = "reasoning_gym"
    config_type = ReasoningGymConfig

    def load(self, config: ReasoningGymConfig, split: str) -> Any:
        from datasets import Dataset

        asked = questions(config, split, config.count + config.shots * (split == "train"))
        shots = (asked if split == "train" else questions(config, "train", config.shots))[: config.shots]
        before = [turn for question, answer in shots for turn in turns(question, answer)]
        rows = [{"messages": before + turns(*pair)} for pair in asked if pair not in shots]
        return Dataset.from_list(rows)


def questions(config: ReasoningGymConfig, split: str, count: int) -> list[tuple[str, str]]:
    """The first ``count`` different questions of ``split``, with their answers."""
    found: dict[str, str] = {}
    for question, answer in generated(config):
        if len(found) == count:
            break
        if held_out(question) == (split != "train"):
            found.setdefault(question, answer)
    if len(found) < count:
        raise DataError(
            f"reasoning_gym: {config.task} has only {len(found)} different questions of {count} for {split}"
        )
    return list(found.items())


def generated(config: ReasoningGymConfig) -> Iterator[tuple[str, str]]:
    try:
        import reasoning_gym
    except ImportError:
        raise MissingDependencyError(
            "the quick start's questions come from reasoning-gym, which is not installed; make install installs it"
        ) from None
    # twenty times what is asked for: a task that repeats itself more than that is too small
    most = 20 * (config.count + config.shots)
    entries = reasoning_gym.create_dataset(config.task, size=most, seed=config.seed, **config.options)
    for n in range(most):
        entry = entries[n]
        yield entry["question"].strip(), str(entry["answer"]).strip()


def held_out(question: str) -> bool:
    """One question in four, by its hash."""
    return hashlib.sha256(question.encode()).digest()[0] < 64


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class ScoreCallback(Callback):
    """Prints the exact match of the first and the last evaluation."""

    name = "print_score"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        when = "after" if trainer.progress.step else "before"
        if is_main():
            for name, value in values.items():
                if name.startswith("exact_match/"):
                    print(f"exact match {when}: {value:.1%}", flush=True)
