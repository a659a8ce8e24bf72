"""The components of the quick start: the source of its data, and what it prints."""

import hashlib
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from arctic_training import Callback, DataSource, DataSourceConfig, is_main
from arctic_training.errors.types import DataError, MissingDependencyError


class ReasoningGymConfig(DataSourceConfig):
    """Keys of the source."""

    task: str
    """Name of a task of reasoning-gym."""
    options: dict[str, Any] = {}
    """Arguments of ``reasoning_gym.create_dataset`` for this task, such as its difficulty."""
    count: int = Field(default=100, ge=1)
    """Questions."""
    seed: int = Field(default=0, ge=0)
    shots: int = Field(default=0, ge=0)
    """Solved training questions before each question, as earlier turns of the chat."""


class ReasoningGymSource(DataSource):
    """Generated questions and their answers.

    The hash of a question decides whether it is held out, so that no seed, count or shots can mix the two.
    """

    name = "reasoning_gym"
    config_type = ReasoningGymConfig

    def load(self, config: ReasoningGymConfig, split: str) -> Any:
        from datasets import Dataset

        pairs = questions(config, split, config.count + (config.shots if split == "train" else 0))
        shots = (pairs if split == "train" else questions(config, "train", config.shots))[: config.shots]
        before = [turn for question, answer in shots for turn in turns(question, answer)]
        rows = [{"messages": before + turns(*pair)} for pair in pairs if pair not in shots]
        return Dataset.from_list(rows)


def questions(config: ReasoningGymConfig, split: str, count: int) -> list[tuple[str, str]]:
    """Returns ``count`` different questions of ``split``, with their answers. Raises `DataError` if there are fewer."""
    answers: dict[str, str] = {}
    for question, answer in generated(config):
        if len(answers) == count:
            break
        if held_out(question) == (split != "train"):
            answers.setdefault(question, answer)
    if len(answers) < count:
        raise DataError(
            f"reasoning_gym: {config.task} has only {len(answers)} different questions of {count} for {split}"
        )
    return list(answers.items())


def generated(config: ReasoningGymConfig) -> Iterator[tuple[str, str]]:
    """Yields questions with their answers, some of them more than once. Raises `MissingDependencyError`."""
    try:
        import reasoning_gym
    except ImportError:
        raise MissingDependencyError(
            "the quick start's questions come from reasoning-gym, which is not installed; make install installs it"
        ) from None
    # a task that has fewer different questions among twenty times as many is too small
    most = 20 * (config.count + config.shots)
    entries = reasoning_gym.create_dataset(config.task, size=most, seed=config.seed, **config.options)
    for n in range(most):
        entry = entries[n]
        yield entry["question"].strip(), str(entry["answer"]).strip()


def held_out(question: str) -> bool:
    """Checks whether a question is held out: one in four, by its hash."""
    return hashlib.sha256(question.encode()).digest()[0] < 64


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """Returns a question and its answer as turns of a chat."""
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
