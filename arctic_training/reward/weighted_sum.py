"""The weighted sum of a recipe's rewards."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import InputError, RecipeError, ScoringError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.generation.scoring import retry
from arctic_training.registry import numbered
from arctic_training.reward.reward import Completion, Reward, RewardConfig


class WeightedRewards:
    """Calls the rewards of a recipe and adds them up."""

    def __init__(self, configs: Sequence[ComponentConfig]) -> None:
        rewards: list[Reward[RewardConfig]] = [Reward[Any].registered(config.type)(config) for config in configs]
        self.rewards = dict(zip(numbered(one.label for one in rewards), rewards, strict=True))

    def check(self) -> None:
        """Raises `InputError`, which names the reward, for arguments that cannot be used."""
        for n, reward in enumerate(self.rewards.values()):
            with _located(n):
                reward.check()

    def load(self) -> None:
        """Loads what the rewards need. Raises `InputError`, which names the reward, for what cannot be loaded."""
        for n, reward in enumerate(self.rewards.values()):
            with _located(n):
                reward.load()

    def __call__(self, completions: Sequence[Completion]) -> tuple[list[float], dict[str, list[float]]]:
        """Returns the weighted sum for each completion, and the values of each reward before its weight.

        A value is NaN where the reward does not judge the completion. The sum is over the rewards that judge it, and
        NaN if none does. Raises `ScoringError` for a reward that raises, or that returns something else than None or a
        finite number for each completion.
        """
        values = {label: self._call(n, label, completions) for n, label in enumerate(self.rewards)}
        weights = [reward.config.weight for reward in self.rewards.values()]
        sums = []
        for column in zip(*values.values(), strict=True):
            judged = [w * v for w, v in zip(weights, column, strict=True) if not math.isnan(v)]
            sums.append(math.fsum(judged) if judged else math.nan)
        return sums, values

    def dry_run(self, completion: Completion, count: int, *, loaded: bool = True) -> None:
        """Scores ``completion``, ``count`` times in one call. Raises `RecipeError` when a reward fails.

        Unless they are ``loaded``, rewards that load something or need the network are left out.
        """
        for n, (label, reward) in enumerate(self.rewards.items()):
            if not loaded and (reward.needs_network or type(reward).load is not Reward.load):
                continue
            try:
                self._checked(n, label, [completion] * count, reward([completion] * count))
            except ScoringError as error:
                raise RecipeError(str(error)) from error
            except Exception as error:
                cause = user_traceback(error) or f"{type(error).__name__}: {error}"
                raise RecipeError(
                    f"rewards.{n}: {label} fails on the reference of the first sample:\n{cause}"
                ) from error

    def _call(self, n: int, label: str, completions: Sequence[Completion]) -> list[float]:
        reward, key = self.rewards[label], f"rewards.{n}: {label}"
        try:
            values = retry(lambda: reward(completions), reward.config.retries, key)
        except Exception as error:
            cause = user_traceback(error) or f"{type(error).__name__}: {error}"
            raise ScoringError(f"{key} fails{_failing_completion(reward, completions)}:\n{cause}") from error
        return self._checked(n, label, completions, values)

    def _checked(
        self, n: int, label: str, completions: Sequence[Completion], returned: Sequence[float | None]
    ) -> list[float]:
        """Returns the values of a reward as floats, with its threshold and bounds applied; NaN for None."""
        config, key = self.rewards[label].config, f"rewards.{n}: {label}"
        try:
            values = [math.nan if value is None else float(value) for value in returned]
        except (TypeError, ValueError):
            raise ScoringError(
                f"{key} returned {short_repr(returned)}; expected a number for each completion"
            ) from None
        if len(values) != len(completions):
            raise ScoringError(
                f"{key} returned {len(values)} numbers for {len(completions)} completions; expected one for each"
            )
        for completion, value, original in zip(completions, values, returned, strict=True):
            if original is not None and not math.isfinite(value):
                text, prompt = short_repr(completion.generated), short_repr(completion.problem)
                raise ScoringError(f"{key} returned {value} for the completion {text} of {prompt}")
        if config.threshold is not None:
            values = [value if math.isnan(value) else float(value >= config.threshold) for value in values]
        if config.clip is not None:
            low, high = config.clip
            values = [value if math.isnan(value) else min(max(value, low), high) for value in values]
        return values


def _failing_completion(reward: Reward[RewardConfig], completions: Sequence[Completion]) -> str:
    """Names the first completion on which ``reward`` raises when it is called with that one alone."""
    for completion in completions:
        try:
            reward([completion])
        except Exception:
            return f" for the completion {short_repr(completion.generated)} of {short_repr(completion.problem)}"
    first = short_repr(completions[0].problem)
    return f" for {len(completions)} completions, the first of them of {first}, and for none of them alone"


@contextmanager
def _located(n: int) -> Iterator[None]:
    """Puts the key of the reward before the text of an `InputError` that is raised inside."""
    try:
        yield
    except InputError as error:
        error.args = (f"rewards.{n}: {error}",)
        raise
