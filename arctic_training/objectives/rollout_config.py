"""Keys of a recipe for trainers that learn from rewards of their own completions."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.objectives.reference_config import ReferenceConfig
from arctic_training.reward.sections import RewardSections

Normalize = Literal["sequence", "token", "constant", "none"]


class RolloutConfig(ReferenceConfig):
    """Keys of every `RolloutTrainer`."""

    renamed: ClassVar[Mapping[str, str]] = {"generate_together": "generation_batch_size"}

    rewards: RewardSections = Field(min_length=1)
    """What scores a completion: rewards and scorers, by name or as sections; their weighted sum is trained on."""
    num_generations: int = Field(default=4, ge=1)
    """Completions of each prompt. A rank computes ``micro_batch_size`` prompts with all their completions at once."""
    num_iterations: int = Field(default=1, ge=1)
    """How often the completions of one window are trained on. Schedules count all optimizer steps, the lengths of the
    run count windows."""
    num_minibatches: int = Field(default=1, ge=1)
    """Optimizer steps of each iteration, each on a part of the window's micro-batches; a divisor of
    ``gradient_accumulation_steps``."""
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
    dynamic_sampling: int = Field(default=0, ge=0)
    """How often a prompt whose completions all have the same reward is replaced by another one, drawn from the training
    data (Yu et al. 2025, section 3.2); 0: never."""
    mask_truncated_completions: bool = False
    """Do not train on completions that did not end within ``max_new_tokens``."""
    normalize: Normalize = "sequence"
    """What the losses of a completion's tokens are divided by: ``sequence``, their number, which gives all completions
    the same weight; ``token``, the number of tokens of the step, which gives all tokens the same weight; ``constant``,
    ``max_new_tokens``; or ``none``, nothing, so that it is the log-probability of the completion that is trained."""
    clip_low: HumanFloat = Field(default=0.2, gt=0, lt=1)
    """By what share a token may become less likely before its gradient is 0."""
    clip_high: HumanFloat = Field(default=0.2, gt=0)
    """By what share a token may become more likely before its gradient is 0."""
    entropy_coefficient: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the entropy of the policy at every token, which is subtracted from the token's loss."""
    beta: HumanFloat = Field(default=0.01, ge=0)
    """How strongly the policy is held to the reference model; 0: not at all, and there is no reference model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence from the reference counts, times ``beta``: added to the loss of every token, or subtracted
    from the rewards."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """By what shares a token may become less and more likely."""
        return self.clip_low, self.clip_high

    @property
    def steps_per_window(self) -> int:
        """Optimizer steps on the completions of one window."""
        return self.num_iterations * self.num_minibatches

    @property
    def needs_old_log_probs(self) -> bool:
        """Returns whether log-probs of the policy that sampled the completions are computed before the first step."""
        return self.steps_per_window > 1 or (self.beta > 0 and self.kl_in == "reward")

    @property
    def reference_not_needed(self) -> str:
        return "" if self.beta else "beta is 0, so that nothing is compared with a reference"

    @model_validator(mode="after")
    def _check_minibatches(self) -> "RolloutConfig":
        steps = self.gradient_accumulation_steps
        if steps % self.num_minibatches:
            raise ValueError(
                f"num_minibatches: {self.num_minibatches} does not divide gradient_accumulation_steps, which is {steps}"
            )
        return self

    @model_validator(mode="after")
    def _check_dynamic_sampling(self) -> "RolloutConfig":
        if self.dynamic_sampling and getattr(self.data, "endless", False):
            raise ValueError("dynamic_sampling: a stream has no samples to draw from; remove one of them")
        if self.dynamic_sampling and self.num_generations < 2:
            raise ValueError(
                "dynamic_sampling: the rewards of one completion cannot differ; set num_generations above 1"
            )
        return self

    @field_validator("checkpoint")
    @classmethod
    def _require_best_metric(cls, sections: list[CheckpointConfig]) -> list[CheckpointConfig]:
        for section in sections:
            if section.enabled and section.keep_best and section.best_metric is None:
                cause = "the loss is smallest for a policy that has not changed; set best_metric: reward/eval"
                raise Problems([Problem(("keep_best",), f"{cause} and best_mode: max")])
        return sections
