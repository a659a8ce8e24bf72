"""Training a causal language model on plain text."""

from typing import Any, ClassVar

from arctic_training.data.causal_factory import CausalDataFactory
from arctic_training.data.factory import DataFactory
from arctic_training.trainer.language_model_trainer import LanguageModelTrainer


class CausalTrainer(LanguageModelTrainer):
    """Every token of a text is a target."""

    name = "causal"
    data_factory_type: ClassVar[type[DataFactory[Any]]] = CausalDataFactory
