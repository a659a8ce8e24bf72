"""Base of the trainers of tensors, such as points, pictures and tables of numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.tensor import TensorDataFactory
from arctic_training.errors.types import DataError
from arctic_training.model.conv_factory import ConvDecoderFactory, ConvFactory
from arctic_training.model.factory import ModelFactory
from arctic_training.model.mlp_factory import MLPFactory
from arctic_training.objectives.factories import OPTIMIZERS, SCHEDULES
from arctic_training.tokenizer.factory import NoTokenizerFactory
from arctic_training.trainer.trainer import Trainer


class TensorTrainer(Trainer):
    """Trains a network on tensors. A subclass states ``name`` and defines `loss`; the components have defaults.

    A batch has the columns of the data, ``[N, ...]`` each, and ``draw``, int64 ``[N]``, from which
    `arctic_training.normal` and `arctic_training.uniform` make the noise of each row. A sum over rows divided by
    ``batch["num_items_in_batch"]`` makes the loss of a step the mean over the rows of the window.
    """

    data_factory_type: ClassVar[type[DataFactory[Any]] | Sequence[type[DataFactory[Any]]]] = TensorDataFactory
    model_factory_type: ClassVar[type[ModelFactory[Any]] | Sequence[type[ModelFactory[Any]]]] = (
        MLPFactory,
        ConvFactory,
        ConvDecoderFactory,
    )
    checkpoint_engine_type = DeepSpeedCheckpointEngine
    optimizer_factory_type = OPTIMIZERS
    scheduler_factory_type = SCHEDULES
    tokenizer_factory_type = NoTokenizerFactory

    def tables(self, *names: str) -> dict[str, Mapping[str, Tensor]]:
        """Returns the columns, ``[rows, ...]`` each, of the data and of every evaluation set, by its name in messages.

        Raises `DataError` for one that lacks a column of ``names``.
        """
        loaders = {"data.sources": self.train_loader, **self.eval_loaders}
        tables: dict[str, Mapping[str, Tensor]] = {name: getattr(one, "dataset", {}) for name, one in loaders.items()}
        for name, columns in tables.items():
            if lacking := next((key for key in names if key not in columns), None):
                raise DataError(f"{name}: no column {lacking}; there are {', '.join(columns)}")
        return tables
