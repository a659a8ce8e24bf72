"""Continued pretraining: a causal language model on plain text."""

from typing import Any, ClassVar

from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.objectives.language_model import LanguageModelTrainer


class CausalTrainer(LanguageModelTrainer):
    """Trains on every token of a text."""

    name = "causal"
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = CausalDataFactory
