"""Base of the trainers of models that generate rows."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from arctic_training.errors.types import DataError
from arctic_training.objectives.tensor import TensorTrainer
from arctic_training.state import isolated_eval


class GenerativeTrainer(TensorTrainer):
    """Trains a model that generates rows. A subclass states ``name``, and defines `loss` and `generate_rows`."""

    @abstractmethod
    def generate_rows(self, draw: Tensor) -> Tensor:
        """Returns a generated row for each number in ``draw``, int64 ``[n]``, from which its noise is derived:
        ``[n, ...]``. It is called in evaluation mode, without gradients."""

    def sample(self, count: int) -> Tensor:
        """Returns ``count`` generated rows, ``[count, ...]``, from the same noise every time; of the averaged weights
        if the callback `ema` keeps them."""
        return self._sample(count, self.generate_rows)

    def _sample(self, count: int, generate: Callable[[Tensor], Tensor]) -> Tensor:
        with self.averaged("model"), isolated_eval([self.model.module]):
            return generate(torch.arange(count, device=self.device))

    def check_data(self) -> None:
        """Raises `DataError` for data without the column ``rows``."""
        super().check_data()
        self.tables("rows")

    def require_float_rows(self) -> None:
        """Raises `DataError` for rows that are no floats, of which there is no density."""
        for name, columns in self.tables("rows").items():
            if not columns["rows"].is_floating_point():
                raise DataError(
                    f"{name}: rows are {columns['rows'].dtype}; a density needs floats, such as pixels from 0 to 1"
                )
