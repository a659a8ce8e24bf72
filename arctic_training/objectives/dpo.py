"""Direct preference optimization: a policy is trained on pairs of completions, compared with a frozen reference."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.checks.not_built import DPO
from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import gather_target_values
from arctic_training.engine.engine import Engine
from arctic_training.loss.preference import (
    LOSS_TYPES,
    PairLogProbs,
    PreferenceLoss,
    pair_log_probs,
    preference_losses,
    preference_metrics,
)
from arctic_training.model.token_losses import token_losses
from arctic_training.objectives.preference import PreferenceConfig, PreferenceTrainer
from arctic_training.objectives.reference import reference_engine

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Keys of a batch with the log-probabilities of the chosen and of the rejected completions under the reference model,
fp32 ``[pairs]`` in nats, where they are known before training: computed, or columns of the rows."""
_NOT_MODEL_INPUTS = ("completion_lengths", "pair_weights", "chosen_tokens", *REFERENCE_COLUMNS)
_WITH_SFT = ("cpo", "orpo")
"""Loss types whose papers add the cross-entropy of the chosen completions."""


class DPOConfig(PreferenceConfig):
    """Keys of the trainer `dpo`.

    Rows that hold the log-probabilities under the reference, summed over the tokens of a completion in nats, need no
    reference model: ``data.extra_columns: [ref_chosen_logps, ref_rejected_logps]``.
    """

    loss_type: PreferenceLoss = "sigmoid"
    """The formula of `preference_losses`: sigmoid is that of DPO; cpo, orpo and simpo need no reference, and simpo a
    ``beta`` of 2 or more."""
    beta: HumanFloat = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; for ipo half the inverse of the target log-ratio."""
    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the labels of a pair are swapped; for sigmoid, sigmoid_norm, simpo and cpo. robust and exo_pair
    need one, such as 0.1 and 0.001."""
    simpo_gamma: Annotated[HumanFloat, OnlyWith("loss_type", "simpo")] = Field(default=0.5, ge=0)
    """Target margin of simpo."""
    sft_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the chosen completions, a mean over their tokens, beside the preference loss (1 by
    default for cpo and orpo). Without it a policy may come to prefer the better completions while it forgets how to
    generate them."""

    not_built = DPO

    @property
    def reference_not_needed(self) -> str:
        if not LOSS_TYPES[self.loss_type].needs_reference:
            return f"{self.loss_type} compares with no reference"
        return "its log-probabilities are columns of the rows" if self._columns_of_rows else ""

    @property
    def _columns_of_rows(self) -> list[str]:
        return [name for name in REFERENCE_COLUMNS if name in getattr(self.data, "extra_columns", ())]

    @model_validator(mode="after")
    def _check_label_smoothing(self) -> "DPOConfig":
        takes = LOSS_TYPES[self.loss_type].label_smoothing
        if self.label_smoothing and takes == "none":
            raise ValueError(f"label_smoothing: the {self.loss_type} loss has no labels; remove it")
        if not self.label_smoothing and takes == "required":
            raise ValueError(f"label_smoothing: the {self.loss_type} loss needs one above 0")
        if self.loss_type in _WITH_SFT and "sft_weight" not in self.model_fields_set:
            self.sft_weight = 1.0
        return self

    @model_validator(mode="after")
    def _check_columns_of_rows(self) -> "DPOConfig":
        if len(self._columns_of_rows) == 1:
            raise ValueError(f"data.extra_columns: both of {' and '.join(REFERENCE_COLUMNS)} are needed")
        return self


class DPOTrainer(PreferenceTrainer):
    """Trains on preferences: chosen and rejected completions of a prompt (DPO and its variants).

    The loss of a step is the mean over the pairs of the window; `DPODataFactory` lists the keys of a batch.
    """

    name = "dpo"
    config: DPOConfig
    shares_sequences = True
    eval_metrics = (
        "accuracy",
        "margin",
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
        "nll",
    )
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = DPODataFactory

    def reference_columns(self, engine: Engine, batch: Batch) -> dict[str, Tensor]:
        log_probs = self.log_probs(engine, batch)
        return dict(zip(REFERENCE_COLUMNS, (log_probs.chosen, log_probs.rejected), strict=True))

    def step(self, batch: Batch) -> None:
        if self.config.sft_weight:
            batch = {**batch, "chosen_tokens": self._mean_chosen_tokens()}
        super().step(batch)

    def loss(self, batch: Batch) -> Tensor:
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
        # rewards are sums over tokens wherever there is a reference
        per_token = reference is None and LOSS_TYPES[config.loss_type].per_token
        for name, values in preference_metrics(policy, reference, config.beta, per_token=per_token).items():
            self.record(name, (values * weights).sum() / pairs)
        loss: Tensor = sum(auxiliary, (losses * weights).sum() / pairs)
        if config.sft_weight:
            nll = -(policy.chosen * weights).sum() / max(batch["chosen_tokens"], 1)
            if evaluates := not torch.is_grad_enabled():
                self.record("preference", loss)
            # a mean over tokens, while an evaluation weights what is recorded by pairs
            self.record("nll", nll, batch["chosen_tokens"] / pairs if evaluates else 1)
            loss = loss + config.sft_weight * nll
        return loss

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Adds up the loss of a mean over pairs and one over tokens, which no single batch can."""
        if "preference" in means:
            means["loss"] = means.pop("preference") + self.config.sft_weight * means["nll"]
        return means

    def log_probs(self, engine: Engine, batch: Batch, auxiliary: list[Tensor] | None = None) -> PairLogProbs:
        """Returns the log-probabilities of a batch's completions under a model, ``[pairs]`` each, in nats.

        Losses that the model itself adds, scalars, are appended to ``auxiliary``.
        """
        inputs = {name: value for name, value in batch.items() if name not in _NOT_MODEL_INPUTS}
        token_log_probs = -gather_target_values(token_losses(engine, inputs, terms=auxiliary), batch)
        return pair_log_probs(token_log_probs, batch["completion_lengths"])

    @torch.no_grad()
    def reference(self, batch: Batch) -> PairLogProbs | None:
        """Returns the same under the reference, ``[pairs]`` each, in nats; None for a loss that needs none."""
        if not LOSS_TYPES[self.config.loss_type].needs_reference:
            return None
        if all(name in batch for name in REFERENCE_COLUMNS):
            chosen, rejected = (batch[name].float() for name in REFERENCE_COLUMNS)
            return PairLogProbs(chosen, rejected, *batch["completion_lengths"].chunk(2))
        with reference_engine(self) as engine:
            return self.log_probs(engine, batch)

    def _mean_chosen_tokens(self) -> float:
        """Returns the number of the chosen completions' tokens of the window / (micro-batches x ranks).

        It is reduced over the ranks once per window.
        """
        window = self.window
        if window.index == 0:
            local = torch.tensor([sum(batch["chosen_tokens"] for batch in window.batches)], dtype=torch.int64)
            self._window_tokens = int(collectives.all_reduce(local))
        return self._window_tokens / (window.size * process_group.world_size())
