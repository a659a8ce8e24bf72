"""Supervised fine-tuning on conversations."""

from typing import Any, ClassVar

from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.objectives.language_model import LanguageModelTrainer


class SFTTrainer(LanguageModelTrainer):
    """Trains on the assistant's turns."""

    name = "sft"
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = SFTDataFactory
