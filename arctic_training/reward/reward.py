"""What an answer that the model gave is worth."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import each, parse_component
from arctic_training.config.sections.numbers import HumanFloat, HumanInt
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import RecipeError, ScoringError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.generation.retry import retry
from arctic_training.registry import Registered, lookup, names, numbered, suggest


@dataclass(frozen=True)
class Answer:
    """An answer, and what it is an answer to."""

    problem: str
    """The prompt, special tokens and all."""
    generated: str
    """Without special tokens, as is the reference."""
    reference: str
    tokens: int
    """Of the answer, its end token among them."""
    ended: bool
    """Whether it came to its end within ``max_new_tokens``."""


class RewardConfig(ComponentConfig):
    weight: HumanFloat = 1.0
    """What the reward is multiplied by before all are added up."""
    threshold: HumanFloat | None = None
    """When given, the reward is 1 from there on, and 0 below."""
    clip: tuple[HumanFloat, HumanFloat] | None = None
    """The lowest and the highest that it may be."""
    retries: Annotated[int, RESUME_SAFE] = Field(default=2, ge=0)
    """How often it is asked again when it raises, after 1, 2, 4, ... seconds. Then the run saves and ends."""

    @model_validator(mode="after")
    def _can_be(self) -> "RewardConfig":
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip: {self.clip[0]:g} to {self.clip[1]:g}: the lowest comes first")
        return self


class Reward(Registered, ABC, kind="reward"):
    """A subclass that states a ``name`` is a reward a recipe can name; so is every scorer."""

    config_type: ClassVar[type[ComponentConfig]] = RewardConfig

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abstractmethod
    def __call__(self, answers: Sequence[Answer]) -> Sequence[float | None]:
        """A number for each answer, the higher the better; the answers to one prompt stand together.

        None for an answer that it does not judge, which is then worth what the other rewards give.
        """


class LengthConfig(RewardConfig):
    free: HumanInt = Field(ge=0)
    """Tokens that cost nothing."""
    limit: HumanInt = Field(ge=1)
    """Tokens from which on an answer costs 1."""

    @model_validator(mode="after")
    def _rises(self) -> "LengthConfig":
        if self.free >= self.limit:
            raise ValueError(f"free: {self.free} tokens, and the limit is {self.limit}; it must be lower")
        return self


class LengthReward(Reward):
    """0 up to ``free`` tokens, falling to -1 at ``limit``: Yu et al. 2025 (arXiv 2503.14476), equation 13."""

    name = "length"
    config_type = LengthConfig

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        free, limit = self.config.free, self.config.limit
        return [-min(max(answer.tokens - free, 0) / (limit - free), 1.0) for answer in answers]


class EndedReward(Reward):
    """1 for an answer that came to its end, 0 for one that was cut off."""

    name = "ended"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [float(answer.ended) for answer in answers]


class ScoreConfig(RewardConfig):
    scorer: Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(lambda told: parse_component("scorer", told))]
    """The scorer: its name, or a section with its keys."""


class ScoreReward(Reward):
    """What a scorer says of the answer beside the reference. A scorer's name in ``rewards`` means this one."""

    name = "score"
    config_type = ScoreConfig

    def __init__(self, config: ScoreConfig) -> None:
        super().__init__(config)
        self.scorer: Any = lookup("scorer", config.scorer.type)(config.scorer)  # type: ignore[call-arg]

    def __call__(self, answers: Sequence[Answer]) -> list[float | None]:
        return [self.scorer(answer.generated, answer.reference) for answer in answers]


def read_rewards(value: Any) -> list[ComponentConfig]:
    """The sections of ``rewards``: a name, a section, or a list of them. Raises `Problems`."""
    return each(value, _read)


RewardSections = Annotated[list[SerializeAsAny[ComponentConfig]], BeforeValidator(read_rewards)]


def _read(section: Any) -> ComponentConfig:
    section = {"type": section} if isinstance(section, str) else section
    name = section.get("type") if isinstance(section, dict) else None
    if isinstance(name, str) and name not in names("reward"):
        if name not in names("scorer"):
            there = suggest(name, sorted({*names("reward"), *names("scorer")}))
            raise Problems([Problem(("type",), f"no reward is named {name!r}; {there}")])
        both = {*RewardConfig.model_fields} & {*getattr(lookup("scorer", name), "config_type").model_fields} - {"type"}  # noqa: B009
        if twice := sorted(both & section.keys()):
            told = (
                f"{name} has a key of this name too; write {{type: score, scorer: {{type: {name}, {twice[0]}: ...}}}}"
            )
            raise Problems([Problem((twice[0],), told)])
        ours = {key: value for key, value in section.items() if key in RewardConfig.model_fields and key != "type"}
        theirs = {key: value for key, value in section.items() if key not in ours}
        section = {"type": ScoreReward.name, "scorer": parse_component("scorer", theirs), **ours}
    read = parse_component("reward", section)
    if not isinstance(read, RewardConfig):
        raise Problems([Problem(("type",), f"{read.type}: its config_type is no RewardConfig")])
    return read


class Rewards:
    """The rewards of a recipe, weighed."""

    def __init__(self, sections: Sequence[Any]) -> None:
        types = (section.scorer.type if isinstance(section, ScoreConfig) else section.type for section in sections)
        self.parts: dict[str, Any] = {
            name: Reward.registered(section.type)(section)
            for name, section in zip(numbered(types), sections, strict=True)
        }

    def __call__(self, answers: Sequence[Answer]) -> tuple[list[float], dict[str, list[float]]]:
        """Returns the sum for each answer, and what each reward gave before its weight; NaN where it gave None.

        The sum is of the rewards that judge the answer, and NaN where none does. Raises `ScoringError` for a reward
        that raises, or gives something else than None or a finite number for each.
        """
        told = {label: self._asked(n, label, answers) for n, label in enumerate(self.parts)}
        weights = [part.config.weight for part in self.parts.values()]
        sums = []
        for column in zip(*told.values(), strict=True):
            judged = [w * v for w, v in zip(weights, column, strict=True) if not math.isnan(v)]
            sums.append(math.fsum(judged) if judged else math.nan)
        return sums, told

    def dry_run(self, answer: Answer, count: int) -> None:
        """Raises `RecipeError` when a reward cannot tell what ``count`` times ``answer`` is worth."""
        for n, label in enumerate(self.parts):
            try:
                self._read(n, label, [answer] * count, self.parts[label]([answer] * count))
            except ScoringError as error:
                raise RecipeError(str(error)) from error
            except Exception as error:
                where = user_traceback(error) or f"{type(error).__name__}: {error}"
                raise RecipeError(
                    f"rewards.{n}: {label} fails on the reference of the first sample:\n{where}"
                ) from error

    def _asked(self, n: int, label: str, answers: Sequence[Answer]) -> list[float]:
        reward, where = self.parts[label], f"rewards.{n}: {label}"
        try:
            given = retry(lambda: reward(answers), reward.config.retries, where)
        except Exception as error:
            told, way = f"{where} fails{_culprit(reward, answers)}", user_traceback(error)
            raise ScoringError(f"{told}:\n{way or f'{type(error).__name__}: {error}'}") from error
        return self._read(n, label, answers, given)

    def _read(self, n: int, label: str, answers: Sequence[Answer], given: Any) -> list[float]:
        """The numbers ``given``, within the bounds that the recipe sets; NaN for None."""
        reward = self.parts[label]
        try:
            values = [math.nan if value is None else float(value) for value in given]
        except (TypeError, ValueError):
            raise ScoringError(
                f"rewards.{n}: {label} gave {short_repr(given)}; wanted is a number for each answer"
            ) from None
        if len(values) != len(answers):
            raise ScoringError(
                f"rewards.{n}: {label} gave {len(values)} numbers for {len(answers)} answers; wanted is one for each"
            )
        for answer, value, one in zip(answers, values, given, strict=True):
            if one is not None and not math.isfinite(value):
                asked, said = short_repr(answer.problem), short_repr(answer.generated)
                raise ScoringError(f"rewards.{n}: {label} gave {value} for the answer {said} to {asked}")
        threshold, clip = reward.config.threshold, reward.config.clip
        if threshold is not None:
            values = [value if math.isnan(value) else float(value >= threshold) for value in values]
        if clip is None:
            return values
        return [value if math.isnan(value) else min(max(value, clip[0]), clip[1]) for value in values]


def _culprit(reward: Reward, answers: Sequence[Answer]) -> str:
    """The answer on which ``reward`` raises, when it raises on one alone."""
    for answer in answers:
        try:
            reward([answer])
        except Exception:
            return f" for the answer {short_repr(answer.generated)} to {short_repr(answer.problem)}"
    first = short_repr(answers[0].problem)
    return f" for {len(answers)} answers, the first of them to {first}, and for none of them alone"
