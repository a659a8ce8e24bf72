"""Group relative policy optimization: answers are compared with the others to the same prompt."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.config.sections.numbers import HumanFloat
from arctic_training.loss.policy import clipped_surrogate_losses, group_advantages, kl_estimates, segment_sums
from arctic_training.objectives.policy import PolicyConfig, PolicyTrainer


class GRPOConfig(PolicyConfig):
    scale_rewards: bool = True
    """Divide what an answer is better than its group by the standard deviation of the group's rewards."""
    normalize: Literal["sequence", "token", "constant"] = "sequence"
    """What the losses of an answer's tokens are divided by: their number, so that all answers count alike; the tokens
    of all answers of the window, so that all tokens do; or ``max_new_tokens``, whatever the lengths."""
    clip_low: HumanFloat = Field(default=0.2, gt=0, lt=1)
    """How much less likely an answer's token may become, as a share, before its gradient is cut off."""
    clip_high: HumanFloat = Field(default=0.2, gt=0)
    """How much likelier."""


class GRPOTrainer(PolicyTrainer):
    """An answer is learned from by how much better it is than the others to its prompt. Shao et al. 2024 (arXiv
    2402.03300), equation 3, exact over the window, however it is cut.
    """

    name = "grpo"
    config_type = GRPOConfig
    shares_sequences = True

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards, scale=self.config.scale_rewards)

    def loss(self, batch: Any) -> Tensor:
        batch, config = self.with_answers(batch), self.config
        lengths, weights, share = batch["lengths"], batch["weights"], batch["num_items_in_batch"]
        terms: list[Tensor] = []
        log_probs = self.log_probs(self.model, batch["inputs"], terms)
        old = log_probs.detach() if batch["old"] is None else batch["old"]
        advantages = batch["advantages"].repeat_interleave(lengths, output_size=len(log_probs))
        losses = clipped_surrogate_losses(log_probs, old, advantages, low=config.clip_low, high=config.clip_high)
        told = batch["told"] | {"entropy": segment_sums(-log_probs.detach(), lengths) / lengths}
        if batch["old"] is not None:
            ratio = (log_probs - old).detach().exp()
            outside = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
            told["clipped"] = segment_sums(outside, lengths) / lengths
        if batch["reference"] is not None:
            apart = kl_estimates(log_probs, batch["reference"])
            told["kl"] = segment_sums(apart.detach(), lengths) / lengths
            losses = losses + config.beta * apart
        for name, values in told.items():
            self.record_answers(name, values, batch)
        sums: Tensor = segment_sums(losses, lengths) * weights
        tokens = batch["num_tokens_in_batch"]
        if config.normalize != "token":
            sums = sums / (lengths if config.normalize == "sequence" else config.max_new_tokens)
        # a micro-batch that only fills a window has weights of 0
        added: Tensor = weights.mean() * sum(terms)
        total: Tensor = sums.sum()
        if config.normalize != "token":
            return total.div(share) + added
        loss = total.div(max(tokens, 1)) + added
        if not torch.is_grad_enabled():
            # a mean over tokens, where what an evaluation records is weighted by answers
            self.record("loss_of_tokens", loss, tokens / share)
        return loss

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        if "loss_of_tokens" in means:
            means["loss"] = means.pop("loss_of_tokens")
        return means
