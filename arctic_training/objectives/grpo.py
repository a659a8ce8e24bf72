"""Group relative policy optimization: a completion is compared with the others of the same prompt."""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.loss.policy import group_advantages, sequence_log_ratios, truncated_importance_losses
from arctic_training.objectives.rollout import RolloutTrainer
from arctic_training.objectives.rollout_batch import Rollout
from arctic_training.objectives.rollout_config import RolloutConfig


class GRPOConfig(RolloutConfig):
    """Keys of the trainer `grpo`."""

    num_generations: int = Field(default=4, ge=2)
    """Completions of each prompt. A rank computes ``micro_batch_size`` prompts with all their completions at once."""
    scale_rewards: bool | Literal["group", "batch", "none"] = True
    """What the advantages of a group are divided by: true or ``group``, the standard deviation of its rewards;
    ``batch``, that of all rewards of the window (Hu et al. 2025, arXiv 2501.03262); false or ``none``, nothing."""
    loss_type: Literal["grpo", "cispo"] = "grpo"
    """``grpo``: a clipped ratio to the policy that sampled a token. ``cispo``: the ratio, at most 1 + ``clip_high``,
    weighs the log-probability of the token, which always has a gradient (MiniMax 2025, arXiv 2506.13585)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether that ratio is that of the token, or the geometric mean of those of its completion (GSPO, Zheng et al.
    2025, arXiv 2507.18071), whose bounds are some 3e-4."""

    @property
    def clip_range(self) -> tuple[float, float]:
        return (1.0 if self.loss_type == "cispo" else self.clip_low), self.clip_high

    @model_validator(mode="after")
    def _check_clip_low(self) -> "GRPOConfig":
        default = type(self).model_fields["clip_low"].default  # which `dump` writes
        if self.loss_type == "cispo" and self.clip_low != default:
            raise ValueError("clip_low: the ratio of cispo has an upper bound only; remove it")
        return self


class GRPOTrainer(RolloutTrainer):
    """Trains on completions by the advantage of their reward over the others of their prompt (GRPO).

    Shao et al. 2024 (arXiv 2402.03300), equation 3, as an exact mean over the window.
    """

    name = "grpo"
    config: GRPOConfig
    shares_sequences = True
    tensor_parallel = True

    def advantages(self, rollout: Rollout) -> Tensor:
        """Returns `group_advantages`, float64 ``[completions]``."""
        scale = self.config.scale_rewards
        groups = rollout["rewards"].reshape(-1, self.config.num_generations)
        advantages = group_advantages(groups, scale=scale in (True, "group")).flatten()
        if scale == "batch":
            _, deviation = self.moments(rollout["rewards"], rollout)
            advantages = advantages / (deviation + 1e-8)
        return advantages

    def log_ratios(self, log_probs: Tensor, rollout: Rollout) -> Tensor:
        """Returns those of tokens, or of completions: float32 ``[tokens]``, in nats."""
        ratios = super().log_ratios(log_probs, rollout)
        if self.config.importance_sampling_level == "sequence":
            return sequence_log_ratios(ratios, rollout["lengths"])
        return ratios

    def policy_losses(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor) -> Tensor:
        """Returns `clipped_surrogate_losses` or `truncated_importance_losses`: float32 ``[tokens]``."""
        if self.config.loss_type == "cispo":
            return truncated_importance_losses(log_probs, log_ratios, advantages, high=self.config.clip_high)
        return super().policy_losses(log_probs, log_ratios, advantages)
