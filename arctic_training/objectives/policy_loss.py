"""The loss of a policy on its own completions, as an exact mean over the window."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from arctic_training.data.batching.loader import Batch
from arctic_training.distributed.sequence_parallel import gather_target_values
from arctic_training.engine.engine import Engine
from arctic_training.loss.policy import clipped_surrogate_losses, kl_estimates, segment_sums
from arctic_training.model.token_losses import token_losses
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.reference import reference_engine
from arctic_training.objectives.rollout_batch import Rollout, of_tokens
from arctic_training.objectives.rollout_config import RolloutConfig


class PolicyLossTrainer(LanguageModelTrainer):
    """Part of `RolloutTrainer`: what is computed on a `Rollout` once it has advantages."""

    config: RolloutConfig

    @abstractmethod
    def with_rollouts(self, batch: Batch) -> Rollout:
        """Returns what `loss` is computed on: ``batch`` itself, or the rollouts of an evaluation's prompts."""

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the loss of the step, of a rollout or of prompts: a float32 scalar."""
        rollout, config = self.with_rollouts(batch), self.config
        auxiliary, entropies = list[Tensor](), list[Tensor]()
        log_probs = self.log_probs(
            self.model, rollout["inputs"], auxiliary, entropies if config.entropy_coefficient else None
        )
        log_ratios = self.log_ratios(log_probs, rollout)
        losses = self.policy_losses(log_probs, log_ratios, of_tokens(rollout["advantages"], rollout))
        entropy = entropies[0] if entropies else -log_probs.detach()
        values = {"entropy": entropy.detach()}
        if entropies:
            losses = losses - config.entropy_coefficient * entropy
        if rollout["old_logprobs"] is not None:
            ratio, (low, high) = log_ratios.detach().exp(), config.clip_range
            values["clipped"] = ((ratio < 1 - low) | (ratio > 1 + high)).float()
        if (reference := rollout["ref_logprobs"]) is not None:
            kl = kl_estimates(log_probs, reference)
            values["kl"] = kl.detach()
            losses = losses + config.beta * kl if config.kl_in == "loss" else losses
        lengths = rollout["lengths"]
        metrics = {name: segment_sums(one, lengths) / lengths for name, one in values.items()}
        for name, one in (rollout["metrics"] | metrics).items():
            self.record_completions(name, one, rollout)
        loss = self.mean_loss(losses, rollout)
        # a micro-batch that only fills a window has weights of 0
        loss = loss + rollout["weights"].mean() * sum(auxiliary)
        if config.normalize == "token" and not torch.is_grad_enabled():
            # a mean over tokens, while an evaluation weights what is recorded by completions
            self.record("loss_of_tokens", loss, rollout["num_tokens_in_batch"] / rollout["num_items_in_batch"])
        return loss

    def policy_losses(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor) -> Tensor:
        """Returns the loss of every token, before entropy and divergence: float32 ``[tokens]``.

        By default `clipped_surrogate_losses`. All tensors are float32 ``[tokens]``: log-probs in nats, what
        `log_ratios` returns, and the advantages of tokens.
        """
        low, high = self.config.clip_range
        return clipped_surrogate_losses(log_ratios, advantages, low=low, high=high)

    def log_ratios(self, log_probs: Tensor, rollout: Rollout) -> Tensor:
        """Returns log-probs minus those of the policy that sampled the tokens: float32 ``[tokens]``, in nats."""
        old = rollout["old_logprobs"]
        return log_probs - (log_probs.detach() if old is None else old)

    def mean_loss(self, losses: Tensor, rollout: Rollout) -> Tensor:
        """Returns the micro-batch's part of the mean of ``losses``, ``[tokens]``, over the completions of the step, by
        ``normalize``: a float32 scalar."""
        lengths, normalize = rollout["lengths"], self.config.normalize
        sums = segment_sums(losses, lengths) * self.loss_weights(rollout)
        if normalize == "token":
            return sums.sum().div(max(rollout["num_tokens_in_batch"], 1))
        if normalize == "sequence":
            sums = sums / lengths
        elif normalize == "constant":
            sums = sums / self.config.max_new_tokens
        return sums.sum().div(rollout["num_items_in_batch"])

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Replaces the loss by its mean over tokens, with ``normalize: token``."""
        if "loss_of_tokens" in means:
            means["loss"] = means.pop("loss_of_tokens")
        return means

    def loss_weights(self, rollout: Rollout) -> Tensor:
        """Returns the weight of each completion in the loss, 0 for those that are not trained on: float32 ``[A]``."""
        weights = rollout["weights"]
        return weights * rollout["finished"] if self.config.mask_truncated_completions else weights

    def record_completions(self, name: str, values: Tensor, rollout: Rollout) -> None:
        """Records the mean of ``values``, ``[completions]``, over the completions that count; that of a reward over
        those of them that it judges, since it is NaN for the others."""
        weights, share = rollout["weights"], rollout["num_items_in_batch"]
        if name.startswith("reward"):
            weights = weights * ~values.isnan()
            values = values.nan_to_num()
        total = weights.sum()
        self.record(name, (values * weights).sum() / total.clamp(min=1e-9), total / share)

    def log_probs(
        self,
        engine: Engine,
        inputs: dict[str, Any],
        auxiliary: list[Tensor] | None = None,
        entropies: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns the log-probabilities of the completions' tokens, completion by completion: float32 ``[tokens]``.

        ``inputs`` are those of a rollout. Losses that the model itself adds, scalars, are appended to ``auxiliary``,
        and the entropies at the tokens, float32 ``[tokens]`` in nats, to ``entropies``.
        """
        own: list[Tensor] | None = None if entropies is None else []
        losses = token_losses(engine, inputs, temperature=self.config.temperature, terms=auxiliary, entropies=own)
        if entropies is not None:
            entropies += [gather_target_values(one, inputs) for one in own or []]
        return -gather_target_values(losses, inputs)

    def reference(self, inputs: dict[str, Any]) -> Tensor | None:
        """Returns the same under the reference model, float32 ``[tokens]``; None where there is none."""
        if not self.config.beta:
            return None
        with reference_engine(self) as engine:
            return self.log_probs(engine, inputs)
