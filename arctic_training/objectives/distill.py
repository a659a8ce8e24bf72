"""Distillation: a student learns the next-token distributions of a frozen teacher."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.loss.cross_entropy import logits_cross_entropy
from arctic_training.loss.divergence import Divergence
from arctic_training.model.causal_lm import text_config
from arctic_training.model.target_outputs import TargetOutputs, at_targets
from arctic_training.objectives.on_policy_trainer import OnPolicyConfig, OnPolicyTrainer
from arctic_training.objectives.precomputed import add_precomputed_columns
from arctic_training.objectives.teacher import Comparison, LiveTeacher, StoredTeacher, Teacher, predictions
from arctic_training.trainer.role import Role


class DistillConfig(OnPolicyConfig):
    """Keys of the trainer `distill`."""

    divergence: Divergence = "forward"
    """forward: KL(teacher | student), which covers all that the teacher may say; reverse: KL(student | teacher), which
    avoids what it would not say; jensen_shannon: between the two, by ``mixture``."""
    temperature: HumanFloat = Field(default=1.0, gt=0)
    """What the logits of both models are divided by. The divergence is multiplied by its square, which keeps the size
    of the gradients."""
    mixture: Annotated[HumanFloat, OnlyWith("divergence", "jensen_shannon")] = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mean distribution of jensen_shannon."""
    ce_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the labels, at temperature 1, beside the divergence."""
    hidden_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the mean squared difference of the hidden states that the output layers receive, which must have the
    same width."""
    teacher_top_k: HumanInt = Field(default=0, ge=0)
    """Compute before training, and keep in the data cache, which so many tokens the teacher finds most likely at each
    label, and their log-probabilities; all other tokens count as one. No step runs the teacher, and it is not in memory
    beside the student. 0: the whole distributions, computed in every step."""
    disable_dropout: bool = False
    """Train the student without dropout, that of an adapter included."""

    @model_validator(mode="after")
    def _check_top_k(self) -> "DistillConfig":
        if not self.teacher_top_k:
            return self
        data = vars(self.data)
        conflicts = (
            (self.hidden_weight, "the hidden states of the teacher are not kept; remove hidden_weight"),
            (self.on_policy_share, "the completions are not known before training; remove on_policy_share"),
            (self.data.endless, "nothing can be computed for all samples of a stream; remove it"),
            (self.sequence_parallel_size > 1, "the labels of a sample are on one rank; remove sequence_parallel_size"),
            (data.get("repeat_to_pack_max_length"), "a sample is in one row; remove data.repeat_to_pack_max_length"),
            (data.get("fuse_positions_prob"), "a sample does not depend on its row; remove data.fuse_positions_prob"),
        )
        if reason := next((reason for conflict, reason in conflicts if conflict), ""):
            raise ValueError(f"teacher_top_k: {reason}")
        return self


class DistillTrainer(OnPolicyTrainer):
    """Trains on the divergence of a student from a frozen teacher, at the labels of texts or conversations.

    A batch is that of `sft`. Logits of both models exist for a few labels at a time only. The loss of a step is the
    mean over all labels of the window.
    """

    name = "distill"
    config: DistillConfig
    shares_sequences = True
    tensor_parallel = True
    data_factory_type: ClassVar[tuple[type[DataFactory[Any]], ...]] = (SFTDataFactory, CausalDataFactory)
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role(
            "teacher",
            frozen=True,
            same_vocabulary=True,
            precompute_key="teacher_top_k",
            description="The model that the student learns from.",
        ),
    )

    def check_models(self, models: Mapping[str, nn.Module | None]) -> None:
        """Raises `ModelError` for another vocabulary, or with ``hidden_weight`` another width, than the teacher's, and
        for a ``teacher_top_k`` beyond the vocabulary."""
        super().check_models(models)
        vocabulary = getattr(text_config(models["teacher"]), "vocab_size", None)
        if vocabulary and self.config.teacher_top_k > vocabulary:
            raise ModelError(f"teacher_top_k: {self.config.teacher_top_k}; the vocabulary has {vocabulary} tokens")
        student, teacher = (getattr(text_config(models[role]), "hidden_size", None) for role in ("model", "teacher"))
        if self.config.hidden_weight and student and teacher and student != teacher:
            raise ModelError(
                f"hidden_weight: the hidden states of the teacher have {teacher} numbers, and those of the student "
                f"{student}; give a teacher of the same width, or remove it"
            )

    def precompute(self, role: str, engine: Engine) -> None:
        """Adds what the teacher predicts to the samples: see ``teacher_top_k``. Raises `ModelError`."""
        config: Any = self.config
        settings = {
            "teacher": config.teacher.model_dump(mode="json", exclude={"name_or_path"}),
            "k": config.teacher_top_k,
            "temperature": config.temperature,
        }
        compute = partial(predictions, k=config.teacher_top_k, temperature=config.temperature)
        add_precomputed_columns(self, engine, compute, settings=settings, of_labels=True)

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        return ("divergence", "nll", "perplexity", *(("hidden",) if self.config.hidden_weight else ()))

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the labels of the window: a float32 scalar."""
        share, teacher, terms = batch["num_items_in_batch"], self._teacher(batch), list[Tensor]()
        sums: dict[str, Tensor] = {}
        total = at_targets(self.model, batch, lambda student: self._sum(student, teacher, sums), terms=terms)
        for name, value in sums.items():
            self.record(name, value / share)
        return sum(terms, total / share)

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Adds the perplexity."""
        return super().finalize_eval_metrics({**means, "perplexity": means["nll"]})

    def _teacher(self, batch: Batch) -> Teacher:
        config = self.config
        comparison = Comparison(config.divergence, config.temperature, config.mixture)
        if config.teacher_top_k:
            return StoredTeacher(batch, comparison)
        return LiveTeacher(self.engines["teacher"], batch, comparison)

    def _sum(self, student: TargetOutputs, teacher: Teacher, sums: dict[str, Tensor]) -> Tensor:
        """Returns the sum of the losses of the labels; adds to ``sums`` what is recorded of them."""
        config, ids = self.config, student.ids
        with_labels = config.ce_weight > 0 or not torch.is_grad_enabled()
        sums["divergence"] = torch.zeros((), device=ids.device)
        if with_labels:
            sums["nll"] = torch.zeros((), device=ids.device)

        def losses_of(logits: Tensor, rows: slice) -> Tensor:
            losses = teacher.divergences(logits, rows)
            sums["divergence"] += losses.detach().sum()
            if with_labels:
                nll = logits_cross_entropy(logits, ids[rows])
                sums["nll"] += nll.detach().sum()
                losses = losses + config.ce_weight * nll
            return losses

        with teacher.in_memory():
            total = student.sum_losses(losses_of)
        if config.hidden_weight:
            total = total + config.hidden_weight * self._hidden_sum(student, teacher, sums)
        return total

    def _hidden_sum(self, student: TargetOutputs, teacher: Teacher, sums: dict[str, Tensor]) -> Tensor:
        if student.hidden is None or teacher.hidden is None:
            raise ModelError("hidden_weight: the logits of the model are not made by one linear layer; remove it")
        total = (student.hidden.float() - teacher.hidden.float()).square().mean(-1).sum()
        sums["hidden"] = total.detach()
        return total
