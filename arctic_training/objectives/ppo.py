"""Proximal policy optimization: a critic says what each token of a completion is worth."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from arctic_training.config.sections.types import HumanFloat
from arctic_training.loss.gae import generalized_advantages, value_losses
from arctic_training.model.dropout import disable_dropout
from arctic_training.objectives.completion_sampler import Group
from arctic_training.objectives.critic import CRITIC, check_critic, token_values
from arctic_training.objectives.rollout import RolloutTrainer
from arctic_training.objectives.rollout_batch import Rollout, of_tokens
from arctic_training.objectives.rollout_config import Normalize, RolloutConfig
from arctic_training.trainer.role import Role


class PPOConfig(RolloutConfig):
    """Keys of the trainer `ppo`."""

    num_generations: int = Field(default=1, ge=1)
    """Completions of each prompt. A rank computes ``micro_batch_size`` prompts with all their completions at once."""
    num_iterations: int = Field(default=4, ge=1)
    """How often the completions of one window are trained on: the epochs of PPO. Schedules count all optimizer steps,
    the lengths of the run count windows."""
    gamma: HumanFloat = Field(default=1.0, gt=0, le=1)
    """Discount of a reward by the number of tokens until it."""
    gae_lambda: HumanFloat = Field(default=0.95, ge=0, le=1)
    """How far an advantage looks ahead before it trusts the critic: 0, one token; 1, to the end of the completion."""
    whiten_advantages: bool = True
    """Subtract from the advantages their mean over all tokens of the window, and divide them by their standard
    deviation."""
    value_clip: HumanFloat | None = Field(default=0.2, gt=0)
    """How far the critic may move a value by the steps on one window before its gradient is 0; null: any distance."""
    vf_coefficient: HumanFloat = Field(default=0.5, gt=0)
    """Factor of the critic's loss, half the squared error of its values."""
    normalize: Normalize = "token"
    """What the losses of a completion's tokens are divided by, those of the critic too: as in `grpo`."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where the divergence from the reference counts, times ``beta``: added to the loss of every token, or subtracted
    from its reward."""
    beta: HumanFloat = Field(default=0.05, ge=0)
    """How strongly the policy is held to the reference model; 0: not at all, and there is no reference model."""


class PPOTrainer(RolloutTrainer):
    """Trains on completions by the advantage of every token over what a critic expects (PPO).

    Schulman et al. 2017 (arXiv 1707.06347), with generalized advantage estimation, and as Ziegler et al. 2019
    (arXiv 1909.08593) for language models: the reward of a completion is that of its last token. The critic is the role
    ``critic``, a model with one number for every token, which reads the same rows as the policy.
    """

    name = "ppo"
    config: PPOConfig
    shares_sequences = True
    tensor_parallel = True
    roles: ClassVar[tuple[Role, ...]] = (*RolloutTrainer.roles, CRITIC)
    eval_metrics = RolloutTrainer.eval_metrics

    def check(self) -> None:
        """Disables dropout in the critic too if the recipe says so, and raises `InputError` as its base does, and for a
        critic that sees what it judges."""
        super().check()
        if self.has_weights:
            check_critic(self)
        if self.config.disable_dropout:
            disable_dropout(self.engines["critic"].module)

    def build_rollout(self, weights: Sequence[float], groups: Sequence[Group], replaced: Sequence[bool]) -> Rollout:
        """Returns the rollout of a micro-batch with the critic's values of its tokens."""
        rollout = super().build_rollout(weights, groups, replaced)
        return {**rollout, "values": self.token_values(rollout["inputs"])}

    def advantages(self, rollout: Rollout) -> Tensor:
        """Returns `generalized_advantages`, float32 ``[tokens]``, and adds what the critic is trained to expect."""
        config, values = self.config, rollout["values"]
        advantages = generalized_advantages(
            rollout["token_rewards"], values, rollout["lengths"], gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        rollout["returns"] = advantages + values
        if config.whiten_advantages:
            mean, deviation = self.moments(advantages, rollout)
            advantages = (advantages - mean) / (deviation + 1e-8)
        return advantages

    def train_step(self, rollout: Rollout) -> None:
        """Trains the policy on the rollout of a micro-batch, and the critic."""
        super().train_step(rollout)
        self.update("critic", self.value_loss(rollout))

    def value_loss(self, rollout: Rollout) -> Tensor:
        """Returns the micro-batch's part of the critic's loss, times ``vf_coefficient``: a float32 scalar."""
        values = self.token_values(rollout["inputs"])
        losses = value_losses(values, rollout["values"], rollout["returns"], clip=self.config.value_clip)
        judged = of_tokens(~rollout["rewards"].isnan(), rollout)
        return self.config.vf_coefficient * self.mean_loss(losses.masked_fill(~judged, 0), rollout)

    def token_values(self, inputs: dict[str, Any]) -> Tensor:
        """Returns the critic's value of the state in which each token of a completion is chosen: float32 ``[tokens]``.

        ``inputs`` are those of a rollout.
        """
        return token_values(self.engines["critic"], inputs)
