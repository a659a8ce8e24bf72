"""Keys of a recipe for trainers that learn from rewards of their own completions."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.objectives.reference_config import ReferenceConfig
from arctic_training.reward.sections import RewardSections


class PolicyConfig(ReferenceConfig):
    """Keys of every `PolicyTrainer`."""

    renamed: ClassVar[Mapping[str, str]] = {"generate_together": "generation_batch_size"}

    rewards: RewardSections = Field(min_length=1)
    """What scores a completion: rewards and scorers, by name or as sections; their weighted sum is trained on."""
    num_generations: int = Field(default=4, ge=2)
    """Completions of each prompt. A rank computes ``micro_batch_size`` prompts with all their completions at once."""
    num_iterations: int = Field(default=1, ge=1)
    """Optimizer steps on the completions of one window. Schedules count them all, the lengths of the run do not."""
    max_new_tokens: HumanInt = Field(default=256, ge=1)
    """Maximum length of a completion in tokens."""
    temperature: HumanFloat = Field(default=1.0, gt=0)
    """What logits are divided by, in sampling and in the log-probabilities that are trained on."""
    top_k: HumanInt = Field(default=0, ge=0)
    """Sample from the ``top_k`` most likely tokens; 0: from all. Log-probabilities stay those among all tokens."""
    top_p: HumanFloat = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability; 1: from all."""
    stop: list[str] = []
    """Tokens of the vocabulary that end a completion, beside the end tokens of model, tokenizer and chat template."""
    generation_batch_size: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Micro-batches of a window whose completions are generated at once; 0: the whole window."""
    beta: HumanFloat = Field(default=0.01, ge=0)
    """How strongly the policy is held to the reference model; 0: not at all, and there is no reference model."""

    @property
    def reference_not_needed(self) -> str:
        return "" if self.beta else "beta is 0, so that nothing is compared with a reference"

    @field_validator("checkpoint")
    @classmethod
    def _require_best_metric(cls, sections: list[CheckpointConfig]) -> list[CheckpointConfig]:
        for section in sections:
            if section.enabled and section.keep_best and section.best_metric is None:
                cause = "the loss is smallest for a policy that has not changed; set best_metric: reward/eval"
                raise Problems([Problem(("keep_best",), f"{cause} and best_mode: max")])
        return sections
