"""Distillation: a student learns the next-token distributions of a frozen teacher."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.errors.types import ModelError
from arctic_training.loss.cross_entropy import logits_cross_entropy
from arctic_training.loss.divergence import Divergence, divergences
from arctic_training.model.target_outputs import TargetOutputs, at_targets
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.trainer.role import Role


class DistillConfig(TrainerConfig):
    """Keys of the trainer `distill`."""

    divergence: Divergence = "forward"
    """forward: KL(teacher | student), which covers all that the teacher may say; reverse: KL(student | teacher), which
    avoids what it would not say; jensen_shannon: between the two, by ``mixture``."""
    temperature: HumanFloat = Field(default=1.0, gt=0)
    """What the logits of both models are divided by. The divergence is multiplied by its square, which keeps the size
    of the gradients."""
    mixture: HumanFloat = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mean distribution of jensen_shannon."""
    ce_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the labels, at temperature 1, beside the divergence."""
    hidden_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the mean squared difference of the hidden states that the output layers receive, which must have the
    same width."""
    disable_dropout: bool = False
    """Train the student without dropout, that of an adapter included."""

    @model_validator(mode="after")
    def _check_mixture(self) -> "DistillConfig":
        if self.mixture != 0.5 and self.divergence != "jensen_shannon":
            raise ValueError(f"mixture: the {self.divergence} divergence has none; remove it")
        return self


class DistillTrainer(LanguageModelTrainer):
    """Trains on the divergence of a student from a frozen teacher, at the labels of texts or conversations.

    A batch is that of `sft`. Logits of both models exist for a few labels at a time only. The loss of a step is the
    mean over all labels of the window.
    """

    name = "distill"
    config_type: ClassVar[type[TrainerConfig]] = DistillConfig
    config: DistillConfig
    shares_sequences = True
    data_factory_type: ClassVar[tuple[type[DataFactory[Any]], ...]] = (SFTDataFactory, CausalDataFactory)
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role("teacher", frozen=True, same_vocabulary=True, description="The model that the student learns from."),
    )

    def check_models(self, models: Mapping[str, nn.Module | None]) -> None:
        """Raises `ModelError` for another vocabulary, or with ``hidden_weight`` another width, than the teacher's."""
        super().check_models(models)
        student, teacher = (_hidden_size(models[role]) for role in ("model", "teacher"))
        if self.config.hidden_weight and student and teacher and student != teacher:
            raise ModelError(
                f"hidden_weight: the hidden states of the teacher have {teacher} numbers, and those of the student "
                f"{student}; give a teacher of the same width, or remove it"
            )

    def loss(self, batch: Any) -> Tensor:
        """Returns the micro-batch's part of the mean over the labels of the window: a float32 scalar."""
        share, teacher, terms = batch["num_items_in_batch"], self._teacher_outputs(batch), list[Tensor]()
        sums: dict[str, Tensor] = {}
        total = at_targets(self.model, batch, lambda student: self._sum(student, teacher, sums), terms=terms)
        for name, value in sums.items():
            self.record(name, value / share)
        return sum(terms, total / share)

    @torch.no_grad()
    def _teacher_outputs(self, batch: Any) -> TargetOutputs:
        outputs: list[TargetOutputs] = []

        def keep(one: TargetOutputs) -> Tensor:
            outputs.append(one)
            return torch.zeros((), device=one.ids.device)

        at_targets(self.engines["teacher"], batch, keep)
        return outputs[0]

    def _sum(self, student: TargetOutputs, teacher: TargetOutputs, sums: dict[str, Tensor]) -> Tensor:
        """Returns the sum of the losses of the labels; adds to ``sums`` what is recorded of them."""
        config, ids = self.config, student.ids
        with_labels = config.ce_weight > 0 or not torch.is_grad_enabled()
        sums["divergence"] = torch.zeros((), device=ids.device)
        if with_labels:
            sums["nll"] = torch.zeros((), device=ids.device)

        def losses_of(logits: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                target_logits = teacher.logits(rows)
            losses = divergences(
                logits,
                target_logits,
                kind=config.divergence,
                temperature=config.temperature,
                mixture=config.mixture,
            )
            sums["divergence"] += losses.detach().sum()
            if with_labels:
                nll = logits_cross_entropy(logits, ids[rows])
                sums["nll"] += nll.detach().sum()
                losses = losses + config.ce_weight * nll
            return losses

        with teacher.weights_in_memory():
            total = student.sum_losses(losses_of)
        if config.hidden_weight:
            total = total + config.hidden_weight * self._hidden_sum(student, teacher, sums)
        return total

    def _hidden_sum(self, student: TargetOutputs, teacher: TargetOutputs, sums: dict[str, Tensor]) -> Tensor:
        if student.hidden is None or teacher.hidden is None:
            raise ModelError("hidden_weight: the logits of the model are not made by one linear layer; remove it")
        total = (student.hidden.float() - teacher.hidden.float()).square().mean(-1).sum()
        sums["hidden"] = total.detach()
        return total


def _hidden_size(model: nn.Module | None) -> int | None:
    config: Any = getattr(model, "config", None)
    return None if config is None else config.get_text_config().hidden_size
