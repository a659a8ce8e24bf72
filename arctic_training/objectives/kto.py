"""Kahneman-Tversky optimization: a policy learns from single completions that were liked or not."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.unpaired_preference import UnpairedPreferenceDataFactory
from arctic_training.distributed import collectives
from arctic_training.distributed.sequence_parallel import gather_target_values
from arctic_training.engine.engine import Engine
from arctic_training.loss.kto import KTOLoss, kto_losses, kto_reference_point
from arctic_training.loss.policy import segment_sums
from arctic_training.model.token_losses import token_losses
from arctic_training.objectives.preference import PreferenceConfig, PreferenceTrainer
from arctic_training.objectives.reference import reference_engine

_REFERENCE, _MISMATCHED_REFERENCE = "ref_logps", "ref_mismatched_logps"
"""Keys of a batch with the log-probabilities of the completions under the reference, fp32 ``[rows]`` in nats, where
they are computed before training."""


class KTOConfig(PreferenceConfig):
    """Keys of the trainer `kto`."""

    loss_type: KTOLoss = "kto"
    """kto, or apo_zero_unpaired: the same without a KL estimate, for completions that are better than the policy's."""
    beta: HumanFloat = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    desirable_weight: HumanFloat = Field(default=1.0, ge=0)
    """Weight of the liked completions. The products of weight and number of both kinds should be about equal."""
    undesirable_weight: HumanFloat = Field(default=1.0, ge=0)
    """Weight of the others."""


class KTOTrainer(PreferenceTrainer):
    """Trains on completions that were liked or not, each by itself (KTO).

    The loss of a step is the mean over the completions of the window. The KL estimate is that of the whole window, on
    all ranks, in an evaluation that of the whole evaluation set; so neither depends on how batches are split.
    `UnpairedPreferenceDataFactory` lists the keys of a batch.
    """

    name = "kto"
    config: KTOConfig
    shares_sequences = True
    eval_metrics = ("kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = UnpairedPreferenceDataFactory

    def reference_columns(self, engine: Engine, batch: Batch) -> dict[str, Tensor]:
        columns = {_REFERENCE: self.log_probs(engine, batch)}
        if self.config.loss_type == "kto":
            columns[_MISMATCHED_REFERENCE] = self.log_probs(engine, batch["mismatched"])
        return columns

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the completions of the window: a float32 scalar."""
        label, weights, rows = batch["label"], batch["row_weights"], batch["num_items_in_batch"]
        evaluates, auxiliary = not torch.is_grad_enabled(), list[Tensor]()
        sums = self.mismatched_sums(batch) if evaluates else self.window_sum(self.mismatched_sums)
        kl = kto_reference_point(*sums)
        policy = self.log_probs(self.model, batch, auxiliary)
        log_ratios = policy - self._reference(batch, batch, _REFERENCE)
        for kind, selected in (("chosen", weights * label), ("rejected", weights * ~label)):
            count = selected.sum()
            for name, values in (("rewards", self.config.beta * log_ratios), ("logps", policy)):
                mean = (values.detach() * selected).sum() / count.clamp(min=1)
                self.record(f"{name}/{kind}", mean, count / rows)
        loss = (self.losses(log_ratios, label, kl) * weights).sum() / rows
        if evaluates:
            self.metrics.kept.append((log_ratios, label, weights, sums))
            self.record("unadjusted", loss)
        else:
            self.record("kl", kl)
        return sum(auxiliary, loss)

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Replaces the losses with the KL estimate of each batch by those with the estimate of the evaluation set."""
        if "unadjusted" in means:
            *rows, sums = zip(*self.metrics.kept, strict=True)
            log_ratios, label, weights = map(torch.cat, rows)
            kl = kto_reference_point(*collectives.all_reduce(torch.stack(sums).sum(0)))
            total = (self.losses(log_ratios, label, kl) * weights).sum()
            total, count = collectives.all_reduce(torch.stack([total, weights.sum()])).tolist()
            means |= {"loss": means["loss"] - means.pop("unadjusted") + total / count, "kl": float(kl)}
        return means

    def losses(self, log_ratios: Tensor, label: Tensor, kl: Tensor) -> Tensor:
        """Returns the loss of every completion, float32 ``[rows]``, given log-ratios and labels ``[rows]``."""
        config = self.config
        return kto_losses(
            log_ratios,
            label,
            kl,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )

    def log_probs(self, engine: Engine, batch: Batch, auxiliary: list[Tensor] | None = None) -> Tensor:
        """Returns the log-probability of each completion of a batch under a model, float32 ``[rows]``, in nats.

        Losses that the model itself adds, scalars, are appended to ``auxiliary``.
        """
        token_log_probs = -gather_target_values(token_losses(engine, batch, terms=auxiliary), batch)
        return segment_sums(token_log_probs, batch["completion_lengths"])

    @torch.no_grad()
    def _reference(self, batch: Batch, completions: Batch, key: str) -> Tensor:
        """Returns the log-probabilities of ``completions`` under the reference, or those that ``batch`` has."""
        if key in batch:
            known: Tensor = batch[key]
            return known
        with reference_engine(self) as engine:
            return self.log_probs(engine, completions)

    def mismatched_sums(self, batch: Batch) -> Tensor:
        """Returns the sum of the log-ratios of the batch's mismatched completions, and their number: float32 ``[2]``;
        zeros where the loss has no KL estimate."""
        if self.config.loss_type != "kto":
            return torch.zeros(2, device=self.device)
        mismatched = batch["mismatched"]
        log_ratios = self.log_probs(self.model, mismatched)
        log_ratios = log_ratios - self._reference(batch, mismatched, _MISMATCHED_REFERENCE)
        counts = mismatched["completion_lengths"] > 0
        return torch.stack([(log_ratios * counts).sum(), counts.sum()])
