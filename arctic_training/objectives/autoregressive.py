"""Autoregressive models with scheduled sampling: part of the inputs are the model's own predictions."""

from typing import Any

import torch
from pydantic import Field

from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.batching.noise import uniform
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.loss.scheduled_sampling import SamplingSchedule, sampling_probability
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.token_losses import token_predictions
from arctic_training.objectives.language_model import LanguageModelConfig, LanguageModelTrainer
from arctic_training.state import eval_mode

_STREAM = 4
"""Stream of random numbers that choose the inputs to replace."""


class AutoregressiveConfig(LanguageModelConfig):
    """Keys of the trainer `autoregressive`."""

    scheduled_sampling: SamplingSchedule = "none"
    """How the probability rises with which a token is replaced, as an input, by the model's prediction for it: none
    (never: teacher forcing), linear, exponential (fast at first) or inverse_sigmoid (fast in the middle)."""
    sampling_probability: HumanFloat = Field(default=0.25, gt=0, le=1)
    """That probability at the end of the schedule; it is 0 at the first step."""
    sampling_steps: HumanInt = Field(default=0, ge=0)
    """Optimizer steps in which it rises; 0: those of the run."""


class AutoregressiveTrainer(LanguageModelTrainer):
    """Trains on every token of a text, or on answers with ``data: {type: sft}``, with scheduled sampling.

    Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099): with a probability that rises, the token at position t is
    replaced as an input by the most likely token after the tokens before t. These predictions are made in a first
    forward pass, all at once, without dropout and gradient and from the true tokens. Only tokens with a label are
    replaced, so never the first one of a document. The labels stay. What is replaced is chosen by the position of a row
    in the order of the data, so that neither the split of the global batch nor a resume changes it. Evaluation replaces
    nothing.
    """

    name = "autoregressive"
    config: AutoregressiveConfig
    shares_sequences = False
    tensor_parallel = True
    data_factory_type = (CausalDataFactory, SFTDataFactory)
    eval_metrics = LanguageModelTrainer.eval_metrics

    @property
    def sampling_probability(self) -> float:
        """The probability with which an input of the current step is replaced."""
        config = self.config
        steps = config.sampling_steps or max(self.training_horizon, 1)
        return sampling_probability(
            config.scheduled_sampling, self.progress.step, steps=steps, final=config.sampling_probability
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the sum of the labels' losses over ``batch["num_items_in_batch"]``: a float32 scalar in nats. In
        training some inputs are predictions."""
        if self.config.scheduled_sampling != "none" and self.model.module.training:
            probability = self.sampling_probability
            self.record("sampling_probability", probability)
            batch = self.with_predictions(batch, probability) if probability else batch
        return super().loss(batch)

    def with_predictions(self, batch: Batch, probability: float) -> dict[str, Any]:
        """Returns ``batch`` with some of its ``input_ids``, int64 ``[rows, T]``, replaced by predictions for them."""
        assert self.train_loader is not None
        labels, progress = batch["labels"], self.progress
        rows = self.train_loader.rank_indices(progress.sample_index)[: len(labels)]
        keys = torch.tensor([(progress.epoch << 40) + row for row in rows], device=labels.device)
        numbers = uniform(keys, labels.shape[1], seed=self.config.seed, stream=_STREAM)
        chosen = (numbers < probability) & (labels != IGNORE_INDEX)
        with eval_mode([self.model.module]):
            predictions = token_predictions(self.model, {**batch, "labels": labels.where(chosen, IGNORE_INDEX)})
        return {**batch, "input_ids": batch["input_ids"].masked_scatter(chosen, predictions)}
