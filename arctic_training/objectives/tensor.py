"""Base of the trainers of tensors, such as points, pictures and tables of numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.data.batching.noise import normal, uniform
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.tensor import TensorDataFactory
from arctic_training.errors.types import DataError, ModelError
from arctic_training.model.conv_factory import ConvDecoderFactory, ConvFactory
from arctic_training.model.factory import ModelFactory
from arctic_training.model.mlp_factory import MLPFactory
from arctic_training.objectives.factories import OPTIMIZERS, SCHEDULES
from arctic_training.state import isolated_eval, needs_numbers
from arctic_training.tokenizer.factory import NoTokenizerFactory
from arctic_training.trainer.trainer import Trainer


class TensorTrainer(Trainer):
    """Trains a network on tensors. A subclass states ``name`` and defines `loss`; the components have defaults.

    A batch has the columns of the data, ``[N, ...]`` each, and ``draw``, int64 ``[N]``, from which `normal` and
    `uniform` make the noise of each row. A sum over rows divided by ``batch["num_items_in_batch"]`` makes the loss of a
    step the mean over the rows of the window.
    """

    data_factory_type: ClassVar[type[DataFactory[Any]] | Sequence[type[DataFactory[Any]]]] = TensorDataFactory
    model_factory_type: ClassVar[type[ModelFactory[Any]] | Sequence[type[ModelFactory[Any]]]] = (
        MLPFactory,
        ConvFactory,
        ConvDecoderFactory,
    )
    checkpoint_engine_type: ClassVar[type[Checkpointer[Any]] | Sequence[type[Checkpointer[Any]]]] = (
        DeepSpeedCheckpointEngine
    )
    optimizer_factory_type = OPTIMIZERS
    scheduler_factory_type = SCHEDULES
    tokenizer_factory_type = NoTokenizerFactory

    def normal(self, draw: Tensor, shape: int | Sequence[int], *, stream: int = 0) -> Tensor:
        """Returns standard normal numbers, float32 ``[N, *shape]``: a function of the recipe's seed, of the number of
        each row in ``draw``, int64 ``[N]``, and of ``stream``."""
        return normal(draw, shape, seed=self.config.seed, stream=stream)

    def uniform(self, draw: Tensor, shape: int | Sequence[int] = (), *, stream: int = 0) -> Tensor:
        """Returns numbers between 0 and 1, float64 ``[N, *shape]``; see `normal`."""
        return uniform(draw, shape, seed=self.config.seed, stream=stream)

    def cast(self, tensor: Tensor, role: str = "model") -> Tensor:
        """Returns ``tensor``, ``[...]``, in the dtype of the weights of a role."""
        return tensor.to(next(self.engines[role].module.parameters()).dtype)

    @property
    def row_shape(self) -> torch.Size:
        """The shape of a row of the data."""
        columns = next(iter(self.tables("rows").values()))
        return columns["rows"].shape[1:]

    def tables(self, *names: str) -> dict[str, Mapping[str, Tensor]]:
        """Returns the columns, ``[rows, ...]`` each, of the data and of every evaluation set, by its name in messages.

        Raises `DataError` for one that lacks a column of ``names``.
        """
        loaders = {"data.sources": self.train_loader, **self.eval_loaders}
        tables: dict[str, Mapping[str, Tensor]] = {
            name: getattr(one, "dataset", {}) for name, one in loaders.items() if one is not None
        }
        for name, columns in tables.items():
            if lacking := next((key for key in names if key not in columns), None):
                raise DataError(f"{name}: no column {lacking}; there are {', '.join(columns)}")
        return tables

    def row_outputs(
        self, compute: Callable[[Tensor], Tensor], *, key: str = "model", inputs: str = ""
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns the first row of the data and of every evaluation set, float32 ``[1, ...]``, with what ``compute``
        returns of it in evaluation mode: ``[1, ...]``.

        Raises `ModelError`, which names ``key`` of the recipe and the ``inputs`` of its network, where that fails.
        """
        outputs: list[tuple[Tensor, Tensor]] = []
        with isolated_eval(engine.module for engine in self.engines.values()):
            for name, columns in self.tables("rows").items():
                row = columns["rows"][:1].to(self.device).float()
                try:
                    outputs.append((row, compute(row)))
                except (RuntimeError, TypeError, ValueError) as error:
                    if not self.has_weights and needs_numbers(error):
                        raise
                    inputs = inputs or f"rows of shape {list(row.shape[1:])} in {name}"
                    raise ModelError(f"{key}: cannot be computed for {inputs}: {error}") from error
        return outputs

    def check_output(
        self,
        compute: Callable[[Tensor], Tensor],
        shape: Sequence[int] | None = None,
        *,
        key: str = "model",
        inputs: str = "",
    ) -> None:
        """Raises `ModelError` where ``compute`` does not map rows, float32 ``[1, ...]``, to ``[1, *shape]``, by default
        to their own shape; see `row_outputs`."""
        for row, output in self.row_outputs(compute, key=key, inputs=inputs):
            expected = list(row.shape[1:]) if shape is None else list(shape)
            if list(output.shape) != [1, *expected]:
                inputs = inputs or f"rows of shape {list(row.shape[1:])}"
                raise ModelError(f"{key}: {inputs} become {list(output.shape[1:])}; expected {expected}")
