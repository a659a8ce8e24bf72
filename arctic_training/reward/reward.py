"""Rewards: what they receive, their base class, and the built-in ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, TypeVar, cast

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.component import COMPONENTS, Configured, parse_component
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.registry import lookup


@dataclass(frozen=True)
class Completion:
    """A completion, and what it is compared with."""

    problem: str
    """The prompt, with special tokens."""
    generated: str
    """The completion, without special tokens."""
    reference: str
    """The completion in the data, without special tokens."""
    tokens: int
    """Length of the completion, with its end token."""
    ended: bool
    """Whether it ended within ``max_new_tokens``."""


class RewardConfig(ComponentConfig):
    """Keys of every reward."""

    weight: HumanFloat = 1.0
    """Factor of the reward in the sum of all rewards."""
    threshold: HumanFloat | None = None
    """If set, the reward is 1 from this value on, and 0 below."""
    clip: tuple[HumanFloat, HumanFloat] | None = None
    """Lower and upper bound of the reward."""
    retries: Annotated[int, RESUME_SAFE] = Field(default=2, ge=0)
    """How often a reward that raises is called again, after 1, 2, 4, ... seconds. Then the run saves and ends."""

    @model_validator(mode="after")
    def _check_clip(self) -> "RewardConfig":
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip: {self.clip[0]:g} to {self.clip[1]:g}: the lower bound comes first")
        return self


R = TypeVar("R", bound=RewardConfig, covariant=True)


class Reward(Configured[R], ABC, kind="reward"):
    """Scores completions. A subclass with a ``name`` can be named in a recipe; every scorer can, too."""

    config_type: ClassVar[type[ComponentConfig]] = RewardConfig
    needs_network: bool = False
    """True if it asks a server for its scores: ``validate`` does not call it."""

    def check(self) -> None:
        """Called before anything is loaded, and by ``validate``. Raises `InputError` for unusable arguments."""

    def load(self) -> None:
        """Called once, when the run is built and before the first call. Loads what is large; raises `InputError`."""

    @abstractmethod
    def __call__(self, completions: Sequence[Completion]) -> Sequence[float | None]:
        """Returns a number for each completion, the higher the better. The completions of a prompt are consecutive.

        None for one that it does not judge: its reward is then the sum of the other rewards.
        """

    @property
    def label(self) -> str:
        """Its name among the metrics of the run."""
        return self.name


class LengthConfig(RewardConfig):
    """Keys of the reward `length`."""

    free: HumanInt = Field(ge=0)
    """Maximum number of tokens with reward 0."""
    limit: HumanInt = Field(ge=1)
    """Number of tokens from which on the reward is -1."""

    @model_validator(mode="after")
    def _check_limit(self) -> "LengthConfig":
        if self.free >= self.limit:
            raise ValueError(f"free: {self.free} tokens, and the limit is {self.limit}; it must be lower")
        return self


class LengthReward(Reward[LengthConfig]):
    """0 up to ``free`` tokens, falling to -1 at ``limit``: Yu et al. 2025 (arXiv 2503.14476), equation 13."""

    name = "length"

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        free, limit = self.config.free, self.config.limit
        return [-min(max(completion.tokens - free, 0) / (limit - free), 1.0) for completion in completions]


class EndedReward(Reward[RewardConfig]):
    """1 for a completion that ended, 0 for one that was cut off."""

    name = "ended"

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        return [float(completion.ended) for completion in completions]


class _Scorer(Protocol):
    needs_network: bool

    @property
    def label(self) -> str: ...

    def check(self) -> None: ...

    def score(self, problem: str, generated: str, reference: str) -> float | None: ...


class ScoreConfig(RewardConfig):
    """Keys of the reward `score`."""

    scorer: Annotated[
        SerializeAsAny[ComponentConfig],
        BeforeValidator(lambda section: parse_component("scorer", section)),
        WithJsonSchema({COMPONENTS: ["scorer"]}),
    ]
    """The scorer: its name, or a section with its keys."""


class ScoreReward(Reward[ScoreConfig]):
    """The score of a scorer. The name of a scorer in ``rewards`` stands for this reward with that scorer."""

    name = "score"

    def __init__(self, config: ScoreConfig) -> None:
        super().__init__(config)
        scorer_type = cast("Callable[[ComponentConfig], _Scorer]", lookup("scorer", config.scorer.type))
        self.scorer = scorer_type(config.scorer)
        self.needs_network = self.scorer.needs_network

    def check(self) -> None:
        """Raises `InputError` for arguments of the scorer that cannot be used."""
        self.scorer.check()

    @property
    def label(self) -> str:
        return self.scorer.label

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        return [self.scorer.score(one.problem, one.generated, one.reference) for one in completions]
