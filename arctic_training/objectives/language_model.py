"""Base of the trainers of causal language models: the components that they accept, and the cross-entropy loss."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.checkpoint.huggingface import HFCheckpointEngine
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.data.tokenization.closing_tokens import add_end_tokens
from arctic_training.model.causal_lm import model_inputs
from arctic_training.model.dropout import disable_dropout
from arctic_training.model.huggingface_factory import HFModelFactory
from arctic_training.model.liger_factory import LigerModelFactory
from arctic_training.model.token_losses import token_losses, token_scores
from arctic_training.objectives.factories import OPTIMIZERS, SCHEDULES
from arctic_training.optimizer.deepspeed_factories import CPUAdamFactory, FusedAdamFactory, MuonFactory
from arctic_training.optimizer.huggingface_factories import AdafactorFactory
from arctic_training.optimizer.lion import LionFactory
from arctic_training.tokenizer.huggingface_factory import HFTokenizerFactory
from arctic_training.tokenizer.lexer_factory import LexerFactory
from arctic_training.trainer.trainer import Trainer


class LanguageModelConfig(TrainerConfig):
    """Keys of the trainers `sft` and `causal`."""

    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of each label's probability that is spread over the whole vocabulary."""
    disable_dropout: bool = False
    """Train without dropout, that of an adapter included."""


class LanguageModelTrainer(Trainer):
    """Minimises the mean cross-entropy of a causal language model over all labels of the window."""

    config_type: ClassVar[type[TrainerConfig]] = LanguageModelConfig
    shares_sequences = True
    model_factory_type = (HFModelFactory, LigerModelFactory)
    checkpoint_engine_type = (DeepSpeedCheckpointEngine, HFCheckpointEngine)
    optimizer_factory_type = (
        *OPTIMIZERS,
        FusedAdamFactory,
        CPUAdamFactory,
        LionFactory,
        AdafactorFactory,
        MuonFactory,
    )
    scheduler_factory_type = SCHEDULES
    tokenizer_factory_type = (HFTokenizerFactory, LexerFactory)

    def check(self) -> None:
        """Disables dropout if the recipe says so, and adds the end token of the chat template to those of the model."""
        arguments = getattr(self.config.data, "chat_template_kwargs", None)
        if arguments is not None:  # else no chats are learned
            add_end_tokens(self.model.module, self.tokenizer, arguments)
        if self.config.disable_dropout:
            disable_dropout(self.model.module)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the model takes of a batch: ``self.model(**self.inputs(batch))`` has its logits.

        Labels, ``num_items_in_batch`` and the columns that are there for the loss are left out.
        """
        return model_inputs(self.model, batch)

    @property
    def eval_metrics(self) -> tuple[str, ...] | None:
        return ("perplexity", "token_accuracy")

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the sum of the labels' losses over ``batch["num_items_in_batch"]``: a float32 scalar in nats, exact
        for any split of the global batch. In an evaluation also records ``token_accuracy``, the share of the labels
        that are most likely after the true tokens before them, and ``perplexity``."""
        smoothing, share = self.config.label_smoothing, batch["num_items_in_batch"]
        if torch.is_grad_enabled():
            return token_losses(self.model, batch, label_smoothing=smoothing, reduction="sum").div(share)
        scores = token_scores(self.model, batch, label_smoothing=smoothing)
        self.record("perplexity", scores.nll / share)
        self.record("token_accuracy", scores.correct / share)
        return scores.loss.div(share)

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Makes the perplexity of the mean cross-entropy, of which it is the exponential."""
        if "perplexity" in means:
            means["perplexity"] = math.exp(min(means["perplexity"], 700.0))  # beyond it is no float
        return means
