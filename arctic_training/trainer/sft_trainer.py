"""Supervised fine-tuning on conversations."""

from typing import Any, ClassVar

from arctic_training.data.factory import DataFactory
from arctic_training.data.sft_factory import SFTDataFactory
from arctic_training.trainer.language_model_trainer import LanguageModelTrainer


class SFTTrainer(LanguageModelTrainer):
    """The assistant's turns are the targets."""

    name = "sft"
    data_factory_type: ClassVar[type[DataFactory[Any]]] = SFTDataFactory
