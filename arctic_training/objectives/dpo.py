"""Direct preference optimization: a policy is trained on pairs of completions, compared with a frozen reference."""

import itertools
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator, model_validator
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
    FDivergence,
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

    loss_type: PreferenceLoss | Annotated[list[PreferenceLoss], Field(min_length=1)] = "sigmoid"
    """The formula of `preference_losses`: sigmoid is that of DPO; cpo, orpo and simpo need no reference, and simpo a
    ``beta`` of 2 or more. Of a list, such as ``[sigmoid, bco_pair]``, the losses are added up."""
    loss_weights: list[Annotated[HumanFloat, Field(ge=0)]] | None = None
    """Weight of each loss of ``loss_type``; 1 by default."""
    beta: HumanFloat = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; for ipo half the inverse of the target log-ratio."""
    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the labels of a pair are swapped; for sigmoid, sigmoid_norm, simpo and cpo. robust and exo_pair
    need one, such as 0.1 and 0.001."""
    simpo_gamma: Annotated[HumanFloat, OnlyWith("loss_type", "simpo")] = Field(default=0.5, ge=0)
    """Target margin of simpo."""
    f_divergence_type: FDivergence = "reverse_kl"
    """The divergence that holds the policy to the reference: forward_kl, js_divergence or alpha_divergence for
    sigmoid, sigmoid_norm, ipo, hinge, robust, exo_pair and discopop."""
    f_alpha_divergence_coef: Annotated[HumanFloat, OnlyWith("f_divergence_type", "alpha_divergence")] = Field(
        default=0.5, ge=0, le=1
    )
    """The alpha of alpha_divergence, which is forward_kl at 0 and reverse_kl at 1: 1 minus that of its paper."""
    ld_alpha: HumanFloat = Field(default=1.0, ge=0, le=1)
    """Weight of the log-probabilities of the tokens by which a completion is longer than the other of its pair, under
    policy and reference; below 1 length counts less (LD-DPO)."""
    sft_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the chosen completions, a mean over their tokens, beside the preference loss (1 by
    default for cpo and orpo). Without it a policy may come to prefer the better completions while it forgets how to
    generate them."""

    not_built = DPO

    @property
    def loss_types(self) -> list[PreferenceLoss]:
        """The losses that are added up."""
        return [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type

    @property
    def needs_reference(self) -> bool:
        """Returns whether a loss compares the policy with a reference."""
        return any(LOSS_TYPES[one].needs_reference for one in self.loss_types)

    @property
    def reference_not_needed(self) -> str:
        if not self.needs_reference:
            return " and ".join(f"{one} compares with no reference" for one in self.loss_types)
        return "its log-probabilities are columns of the rows" if self._columns_of_rows else ""

    @property
    def _columns_of_rows(self) -> list[str]:
        return [name for name in REFERENCE_COLUMNS if name in getattr(self.data, "extra_columns", ())]

    @field_validator("loss_type", mode="before")
    @classmethod
    def _refuse_sft(cls, value: object) -> object:
        if "sft" in (value if isinstance(value, list) else [value]):
            raise ValueError("sft is no loss of pairs; remove it, and give its weight as sft_weight")
        return value

    @model_validator(mode="after")
    def _check_losses(self) -> "DPOConfig":
        types = self.loss_types
        if len(set(types)) < len(types):
            raise ValueError("loss_type: a loss is there twice; give it once, with a weight in loss_weights")
        if self.loss_weights is not None and len(self.loss_weights) != len(types):
            raise ValueError(f"loss_weights: {len(self.loss_weights)} for {len(types)} losses; give one for each")
        for one in types:
            kind = LOSS_TYPES[one]
            if not self.label_smoothing and kind.label_smoothing == "required":
                raise ValueError(f"label_smoothing: the {one} loss needs one above 0")
            if self.f_divergence_type != "reverse_kl" and not kind.any_divergence:
                raise ValueError(f"f_divergence_type: the {one} loss is of reverse_kl only; remove it")
            if self.ld_alpha != 1 and not kind.needs_reference:
                raise ValueError(f"ld_alpha: the {one} loss compares with no reference; remove it")
        if self.label_smoothing and all(LOSS_TYPES[one].label_smoothing == "none" for one in types):
            raise ValueError(f"label_smoothing: the {' and the '.join(types)} loss has no labels; remove it")
        if set(types) & set(_WITH_SFT) and "sft_weight" not in self.model_fields_set:
            self.sft_weight = 1.0
        return self

    @model_validator(mode="after")
    def _check_columns_of_rows(self) -> "DPOConfig":
        if len(self._columns_of_rows) == 1:
            raise ValueError(f"data.extra_columns: both of {' and '.join(REFERENCE_COLUMNS)} are needed")
        if self._columns_of_rows and self.ld_alpha != 1:
            raise ValueError("ld_alpha: the columns of the rows count all tokens alike; remove it, or the columns")
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
    reference_keys = ("ld_alpha",)
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
        tokens, lengths = self.token_log_probs(self.model, batch, auxiliary), batch["completion_lengths"]
        policy, reference = pair_log_probs(tokens, lengths, ld_alpha=config.ld_alpha), self.reference(batch)
        losses = self.losses(policy, reference)
        # rewards are sums over tokens wherever there is a reference
        per_token = reference is None and all(LOSS_TYPES[one].per_token for one in config.loss_types)
        for name, values in preference_metrics(policy, reference, config.beta, per_token=per_token).items():
            self.record(name, (values * weights).sum() / pairs)
        loss: Tensor = sum(auxiliary, (losses * weights).sum() / pairs)
        if config.sft_weight:
            nll = -(pair_log_probs(tokens, lengths).chosen * weights).sum() / max(batch["chosen_tokens"], 1)
            if evaluates := not torch.is_grad_enabled():
                self.record("preference", loss)
            # a mean over tokens, while an evaluation weights what is recorded by pairs
            self.record("nll", nll, batch["chosen_tokens"] / pairs if evaluates else 1)
            loss = loss + config.sft_weight * nll
        return loss

    def losses(self, policy: PairLogProbs, reference: PairLogProbs | None) -> Tensor:
        """Returns the loss of every pair, float32 ``[pairs]``: the weighted sum of those of ``loss_type``."""
        config, total = self.config, torch.zeros_like(policy.chosen)
        for loss_type, weight in zip(config.loss_types, config.loss_weights or itertools.repeat(1.0), strict=False):
            total = total + weight * preference_losses(
                policy,
                reference,
                loss_type=loss_type,
                beta=config.beta,
                label_smoothing=config.label_smoothing,
                gamma=config.simpo_gamma,
                f_divergence_type=config.f_divergence_type,
                f_alpha_divergence_coef=config.f_alpha_divergence_coef,
            )
        return total

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Adds up the loss of a mean over pairs and one over tokens, which no single batch can."""
        if "preference" in means:
            means["loss"] = means.pop("preference") + self.config.sft_weight * means["nll"]
        return means

    def token_log_probs(self, engine: Engine, batch: Batch, auxiliary: list[Tensor] | None = None) -> Tensor:
        """Returns the log-probabilities of the tokens of a batch's completions under a model, float32 ``[tokens]`` in
        nats, as `pair_log_probs` takes them.

        Losses that the model itself adds, scalars, are appended to ``auxiliary``.
        """
        inputs = {name: value for name, value in batch.items() if name not in _NOT_MODEL_INPUTS}
        return -gather_target_values(token_losses(engine, inputs, terms=auxiliary), batch)

    def log_probs(self, engine: Engine, batch: Batch) -> PairLogProbs:
        """Returns the log-probabilities of a batch's completions under a model, ``[pairs]`` each, in nats."""
        lengths = batch["completion_lengths"]
        return pair_log_probs(self.token_log_probs(engine, batch), lengths, ld_alpha=self.config.ld_alpha)

    @torch.no_grad()
    def reference(self, batch: Batch) -> PairLogProbs | None:
        """Returns the same under the reference, ``[pairs]`` each, in nats; None for a loss that needs none."""
        if not self.config.needs_reference:
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
