"""Direct preference optimization: a policy, and a frozen reference that it is compared with."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import (
    Field,
    SerializeAsAny,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from torch import Tensor

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.not_built import require_built
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.numbers import HumanFloat
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
from arctic_training.objectives.language_model import LanguageModelConfig, LanguageModelTrainer
from arctic_training.objectives.reference import read_reference, require_fit, require_start, without_adapter
from arctic_training.trainer.role import Role

_OURS = ("answer_lengths", "pair_weights", "answer_tokens")


class DPOConfig(LanguageModelConfig):
    loss_type: PreferenceLoss = "sigmoid"
    """sigmoid, ipo, hinge, or simpo, which needs no reference and is used with a ``beta`` of 2 or more."""
    beta: HumanFloat = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; for ipo half the inverse of the gap that is aimed at."""
    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=0.5)
    """Chance that a pair is the wrong way round; for sigmoid and simpo."""
    simpo_gamma: HumanFloat = Field(default=0.5, ge=0)
    """The margin that simpo asks for."""
    sft_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the preferred answers, a mean over their tokens, beside the preference loss.
    Without it a policy may come to prefer the better answers while it forgets how to give them."""
    ref_model: Annotated[SerializeAsAny[ModelConfig] | None, TrainerComponent("model_factory_type")] = None
    """The reference. When left out, the policy as it was at the start: made by the ``model`` section again, or, where
    that has a ``peft_config``, the policy itself without its adapter."""
    reference_model_deepspeed: Annotated[dict[str, Any] | None, RESUME_SAFE] = None
    """What takes the place of ``deepspeed`` for the reference; its stage 3 shards it over the processes."""
    disable_dropout: bool = True
    """Train without dropout, that of an adapter included; else the policy differs from the reference before it has
    learned anything."""
    ignore_label_index: int = -100
    """The label of a token that is no target; another one is not built yet."""

    _built = field_validator("ignore_label_index")(require_built)

    @field_validator("ref_model", mode="wrap")
    @classmethod
    def _reference(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        simpo = info.data.get("loss_type") == "simpo"
        return read_reference(value, read, info, unwanted="simpo compares with no reference" * simpo)

    @model_validator(mode="after")
    def _smoothable(self) -> "DPOConfig":
        if self.label_smoothing and self.loss_type in ("ipo", "hinge"):
            raise ValueError(f"label_smoothing: the {self.loss_type} loss has no labels; leave it out")
        return self

    @field_validator("reference_model_deepspeed")
    @classmethod
    def _block(cls, block: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return require_fit(block, info)


class DPOTrainer(LanguageModelTrainer):
    """The loss is a mean over the pairs of the whole window; see `DPODataFactory` for what a batch holds."""

    name = "dpo"
    config_type = DPOConfig
    shares_sequences = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = DPODataFactory
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role("ref_model", frozen=True, deepspeed="reference_model_deepspeed"),
    )

    def check(self) -> None:
        """Raises `InputError` for what its base refuses, and for a reference that is not the policy at the start."""
        super().check()
        if self.config.loss_type != "simpo" and "ref_model" not in self.config.model_fields_set:
            require_start(self)

    def targets(self, batch: Any) -> int:
        return int(batch["pair_weights"].sum())

    def step(self, batch: Any) -> None:
        if self.config.sft_weight:
            batch = {**batch, "answer_tokens": self._answer_tokens()}
        super().step(batch)

    def loss(self, batch: Any) -> Tensor:
        config, weights, pairs = self.config, batch["pair_weights"], batch["num_items_in_batch"]
        terms: list[Tensor] = []
        policy, reference = self.answers(self.model, batch, terms), self.reference(batch)
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
        loss: Tensor = sum(terms, (losses * weights).sum() / pairs)
        if config.sft_weight:
            nll = -(policy.chosen * weights).sum() / max(batch["answer_tokens"], 1)
            if evaluates := not torch.is_grad_enabled():
                self.record("preference", loss)
            # a mean over tokens, where what an evaluation records is weighted by pairs
            self.record("nll", nll, batch["answer_tokens"] / pairs if evaluates else 1)
            loss = loss + config.sft_weight * nll
        return loss

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """The loss is put together of a mean over pairs and one over tokens, as no batch alone can."""
        if "preference" in means:
            means["loss"] = means.pop("preference") + self.config.sft_weight * means["nll"]
        return means

    def answers(self, engine: Any, batch: Any, terms: list[Tensor] | None = None) -> PairLogProbs:
        """The log-probabilities of a batch's answers under a model. What that adds to its loss goes to ``terms``."""
        inputs = {name: value for name, value in batch.items() if name not in _OURS}
        return pair_log_probs(
            -gather_target_values(target_losses(engine, inputs, terms=terms), batch), batch["answer_lengths"]
        )

    @torch.no_grad()
    def reference(self, batch: Any) -> PairLogProbs | None:
        """The same under the reference; None for a loss that needs none."""
        if self.config.loss_type == "simpo":
            return None
        if "ref_model" in self.engines:
            return self.answers(self.engines["ref_model"], batch)
        with without_adapter(self.model.module):
            return self.answers(self.model, batch)

    def _answer_tokens(self) -> float:
        """What the sum over the preferred answers' tokens in a micro-batch is divided by; one reduction a window."""
        window = self.window
        if window.index == 0:
            mine = torch.tensor([sum(batch["answer_tokens"] for batch in window.batches)], dtype=torch.int64)
            self._window_tokens = int(collectives.all_reduce(mine))
        return self._window_tokens / (window.size * process_group.world_size())
