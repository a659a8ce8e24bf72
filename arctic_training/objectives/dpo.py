"""Direct preference optimization: a policy is trained on pairs of completions, compared with a frozen reference."""

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.checks.not_built import DPO
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import gather_target_values
from arctic_training.loss.preference import (
    PairLogProbs,
    PreferenceLoss,
    pair_log_probs,
    preference_losses,
    preference_metrics,
)
from arctic_training.model.target_losses import target_losses
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.reference import check_reference_is_policy, without_adapter
from arctic_training.objectives.reference_config import ReferenceConfig
from arctic_training.trainer.role import Role

_NOT_MODEL_INPUTS = ("answer_lengths", "pair_weights", "answer_tokens")


class DPOConfig(ReferenceConfig):
    """Keys of the trainer `dpo`."""

    loss_type: PreferenceLoss = "sigmoid"
    """sigmoid, ipo, hinge, or simpo, which needs no reference and is used with a ``beta`` of 2 or more."""
    beta: HumanFloat = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; for ipo half the inverse of the target log-ratio."""
    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the labels of a pair are swapped; for sigmoid and simpo."""
    simpo_gamma: HumanFloat = Field(default=0.5, ge=0)
    """Target margin of simpo."""
    sft_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the chosen completions, a mean over their tokens, beside the preference loss.
    Without it a policy may come to prefer the better completions while it forgets how to generate them."""

    not_built = DPO

    def reference_not_needed(self) -> str:
        return "simpo compares with no reference" if self.loss_type == "simpo" else ""

    @model_validator(mode="after")
    def _check_label_smoothing(self) -> "DPOConfig":
        if self.label_smoothing and self.loss_type in ("ipo", "hinge"):
            raise ValueError(f"label_smoothing: the {self.loss_type} loss has no labels; remove it")
        return self


class DPOTrainer(LanguageModelTrainer):
    """Trains on preferences: chosen and rejected completions of a prompt (DPO and its variants).

    The loss of a step is the mean over the pairs of the window; `DPODataFactory` lists the keys of a batch.
    """

    name = "dpo"
    config_type = DPOConfig
    config: DPOConfig
    shares_sequences = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = DPODataFactory
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role("ref_model", frozen=True, deepspeed="reference_model_deepspeed"),
    )

    def check(self) -> None:
        """Raises `InputError` for what its base refuses, and for a default reference that is not the policy."""
        super().check()
        if self.config.loss_type != "simpo" and "ref_model" not in self.config.model_fields_set:
            check_reference_is_policy(self)

    def targets(self, batch: Any) -> int:
        """Returns the number of pairs that count."""
        return int(batch["pair_weights"].sum())

    def step(self, batch: Any) -> None:
        if self.config.sft_weight:
            batch = {**batch, "answer_tokens": self._mean_chosen_tokens()}
        super().step(batch)

    def loss(self, batch: Any) -> Tensor:
        """Returns the micro-batch's part of the mean over the pairs of the window: a float32 scalar in nats.

        With ``sft_weight``, the weighted cross-entropy of the chosen completions is added, a mean over their tokens.
        """
        config, weights, pairs = self.config, batch["pair_weights"], batch["num_items_in_batch"]
        auxiliary: list[Tensor] = []
        policy, reference = self.log_probs(self.model, batch, auxiliary), self.reference(batch)
        losses = preference_losses(
            policy,
            reference,
            loss_type=config.loss_type,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            gamma=config.simpo_gamma,
        )
        for name, values in preference_metrics(policy, reference, config.beta).items():
            self.record(name, (values * weights).sum() / pairs)
        loss: Tensor = sum(auxiliary, (losses * weights).sum() / pairs)
        if config.sft_weight:
            nll = -(policy.chosen * weights).sum() / max(batch["answer_tokens"], 1)
            if evaluates := not torch.is_grad_enabled():
                self.record("preference", loss)
            # a mean over tokens, while an evaluation weights what is recorded by pairs
            self.record("nll", nll, batch["answer_tokens"] / pairs if evaluates else 1)
            loss = loss + config.sft_weight * nll
        return loss

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Adds up the loss of a mean over pairs and one over tokens, which no single batch can."""
        if "preference" in means:
            means["loss"] = means.pop("preference") + self.config.sft_weight * means["nll"]
        return means

    def log_probs(self, engine: Any, batch: Any, auxiliary: list[Tensor] | None = None) -> PairLogProbs:
        """Returns the log-probabilities of a batch's completions under a model, ``[pairs]`` each, in nats.

        Losses that the model itself adds, scalars, are appended to ``auxiliary``.
        """
        inputs = {name: value for name, value in batch.items() if name not in _NOT_MODEL_INPUTS}
        token_log_probs = -gather_target_values(target_losses(engine, inputs, terms=auxiliary), batch)
        return pair_log_probs(token_log_probs, batch["answer_lengths"])

    @torch.no_grad()
    def reference(self, batch: Any) -> PairLogProbs | None:
        """Returns the same under the reference, ``[pairs]`` each, in nats; None for a loss that needs none."""
        if self.config.loss_type == "simpo":
            return None
        if "ref_model" in self.engines:
            return self.log_probs(self.engines["ref_model"], batch)
        with without_adapter(self.model.module):
            return self.log_probs(self.model, batch)

    def _mean_chosen_tokens(self) -> float:
        """Returns the number of the chosen completions' tokens of the window / (micro-batches x ranks).

        It is reduced over the ranks once per window.
        """
        window = self.window
        if window.index == 0:
            local = torch.tensor([sum(batch["answer_tokens"] for batch in window.batches)], dtype=torch.int64)
            self._window_tokens = int(collectives.all_reduce(local))
        return self._window_tokens / (window.size * process_group.world_size())
