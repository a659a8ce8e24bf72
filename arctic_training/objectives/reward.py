"""Reward models: a head on a language model learns to rank the completions of a prompt as people do."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.preference import PreferenceDataFactory
from arctic_training.loss.reward import reward_losses
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.trainer.role import Role


class RewardTrainerConfig(TrainerConfig):
    """Keys of the trainer `reward`."""

    center_rewards_coefficient: HumanFloat = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's rewards, which holds their mean at 0; the pairs leave it open. 0.01 is
    usual."""
    disable_dropout: bool = True
    """Train without dropout, that of an adapter included."""


class RewardTrainer(LanguageModelTrainer):
    """Trains a model that scores completions, on pairs of a chosen and a rejected one (Bradley-Terry).

    The loss of a step is the mean over the pairs of the window. A batch has the keys that `DPODataFactory` lists; a
    column ``margin`` of the data, float ``[pairs]``, is by how much the rewards of a pair are to differ.
    """

    name = "reward"
    config: RewardTrainerConfig
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = PreferenceDataFactory
    roles: ClassVar[tuple[Role, ...]] = (Role("model", tasks=("sequence_classification",), num_labels=1),)
    eval_metrics = ("accuracy", "margin", "reward")

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the pairs of the window: a float32 scalar."""
        weights, pairs = batch["pair_weights"], batch["num_items_in_batch"]
        chosen, rejected = self.rewards(batch).chunk(2)
        losses = reward_losses(
            chosen,
            rejected,
            margin=batch.get("margin"),
            center_coefficient=self.config.center_rewards_coefficient,
        )
        difference = (chosen - rejected).detach()
        metrics = {
            "accuracy": (difference > 0).float(),
            "margin": difference,
            "reward": (chosen + rejected).detach() / 2,
        }
        for name, values in metrics.items():
            self.record(name, (values * weights).sum() / pairs)
        loss: Tensor = (losses * weights).sum() / pairs
        return loss

    def rewards(self, batch: Batch) -> Tensor:
        """Returns the reward of each completion: float32 ``[2 * pairs]``, all chosen ones first."""
        scores: Tensor = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return scores.squeeze(-1).to(torch.float32)
