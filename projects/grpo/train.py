"""Running sums modulo 17: problems, their answers, and the figures of a run that learns from its own completions."""

import hashlib
import random
from collections.abc import Iterator
from itertools import accumulate, islice
from typing import Any

from arctic_training import Callback, ComponentConfig, DataSource, DataSourceConfig, HumanInt, TrainingError, is_main

MODULUS, LENGTH = 17, 4


def problems(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yields different problems and their answers, without end. One problem in four is held out, by its hash."""
    draw, seen = random.Random(f"{split} {seed}"), set()
    while True:
        numbers = [draw.randrange(MODULUS) for _ in range(LENGTH)]
        problem = " ".join(map(str, numbers))
        held_out = hashlib.sha256(problem.encode()).digest()[0] < 64
        if held_out == (split != "train") and problem not in seen:
            seen.add(problem)
            yield {"problem": problem, "answer": " ".join(str(total % MODULUS) for total in accumulate(numbers))}


class SumsConfig(DataSourceConfig):
    """Keys of the source."""

    count: HumanInt = 10_000
    """Problems."""
    seed: int = 0


class SumsSource(DataSource):
    """Running sums with their answers."""

    name = "running_sums"
    config_type = SumsConfig

    def load(self, config: SumsConfig, split: str) -> Any:
        from datasets import Dataset

        return Dataset.from_list(list(islice(problems(split, config.seed), config.count)))


class UntilConfig(ComponentConfig):
    """Keys of the callback."""

    success: float = 0.9
    """Share of right answers at which training ends."""


class StopAtSuccess(Callback):
    """Ends the run when the model is good enough. A run that ends before fails."""

    name = "until"
    config_type = UntilConfig

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        if (right := values["exact_match/eval"]) >= self.config.success:
            trainer.stop(f"{right:.1%} of the answers are right")

    def post_train(self, trainer: Any) -> None:
        if not (trainer.finished or trainer.stop_requested):
            raise TrainingError(
                f"{self.label}.success: {self.config.success:g} was not reached in {trainer.progress.step} steps; "
                "train longer, or accept less"
            )


class PrintFigures(Callback):
    """Prints the share of right answers, by greedy decoding and by sampling, before and after."""

    name = "figures"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        when = "after" if trainer.progress.step else "before"
        labels = {"exact_match/eval": "greedy", "reward/exact_match/eval": "sampled"}
        for name, label in labels.items():
            if is_main() and name in values:
                print(f"{label} answers that are right {when}: {values[name]:.1%}", flush=True)
