"""Group relative policy optimization: a completion is compared with the others of the same prompt."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.config.sections.types import HumanFloat
from arctic_training.loss.policy import clipped_surrogate_losses, group_advantages, kl_estimates, segment_sums
from arctic_training.objectives.policy import PolicyTrainer
from arctic_training.objectives.policy_config import PolicyConfig


class GRPOConfig(PolicyConfig):
    """Keys of the trainer `grpo`."""

    scale_rewards: bool = True
    """Divide the advantages of a group by the standard deviation of its rewards."""
    normalize: Literal["sequence", "token", "constant"] = "sequence"
    """What the losses of a completion's tokens are divided by: their number, which gives all completions the same
    weight; the number of tokens of the window, which gives all tokens the same weight; or ``max_new_tokens``."""
    clip_low: HumanFloat = Field(default=0.2, gt=0, lt=1)
    """By what share a token may become less likely before its gradient is 0."""
    clip_high: HumanFloat = Field(default=0.2, gt=0)
    """By what share a token may become more likely before its gradient is 0."""


class GRPOTrainer(PolicyTrainer):
    """Trains on completions by the advantage of their reward over the others of their prompt (GRPO).

    Shao et al. 2024 (arXiv 2402.03300), equation 3, as an exact mean over the window.
    """

    name = "grpo"
    config_type = GRPOConfig
    config: GRPOConfig
    shares_sequences = True

    def advantages(self, rewards: Tensor) -> Tensor:
        """Returns `group_advantages`, float64 ``[prompts, num_generations]``."""
        return group_advantages(rewards, scale=self.config.scale_rewards)

    def loss(self, batch: Any) -> Tensor:
        """Returns the micro-batch's part of the loss of the window: a float32 scalar."""
        batch, config = self.with_rollouts(batch), self.config
        lengths, weights, share = batch["lengths"], batch["weights"], batch["num_items_in_batch"]
        auxiliary: list[Tensor] = []
        log_probs = self.log_probs(self.model, batch["inputs"], auxiliary)
        old = log_probs.detach() if batch["old_logprobs"] is None else batch["old_logprobs"]
        advantages = batch["advantages"].repeat_interleave(lengths, output_size=len(log_probs))
        losses = clipped_surrogate_losses(log_probs, old, advantages, low=config.clip_low, high=config.clip_high)
        metrics = batch["metrics"] | {"entropy": segment_sums(-log_probs.detach(), lengths) / lengths}
        if batch["old_logprobs"] is not None:
            ratio = (log_probs - old).detach().exp()
            clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
            metrics["clipped"] = segment_sums(clipped, lengths) / lengths
        if batch["ref_logprobs"] is not None:
            kl = kl_estimates(log_probs, batch["ref_logprobs"])
            metrics["kl"] = segment_sums(kl.detach(), lengths) / lengths
            losses = losses + config.beta * kl
        for name, values in metrics.items():
            self.record_completions(name, values, batch)
        sums: Tensor = segment_sums(losses, lengths) * weights
        # a micro-batch that only fills a window has weights of 0
        auxiliary_loss: Tensor = weights.mean() * sum(auxiliary)
        if config.normalize != "token":
            sums = sums / (lengths if config.normalize == "sequence" else config.max_new_tokens)
            return sums.sum().div(share) + auxiliary_loss
        tokens = batch["num_tokens_in_batch"]
        loss = sums.sum().div(max(tokens, 1)) + auxiliary_loss
        if not torch.is_grad_enabled():
            # a mean over tokens, while an evaluation weights what is recorded by completions
            self.record("loss_of_tokens", loss, tokens / share)
        return loss

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Replaces the loss by its mean over tokens, with ``normalize: token``."""
        if "loss_of_tokens" in means:
            means["loss"] = means.pop("loss_of_tokens")
        return means
