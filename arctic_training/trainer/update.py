"""The weights of the roles: how the losses of micro-batches become updates of them, their averages, their loading."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from arctic_training.callback.callback import Callback
from arctic_training.callback.ema import EMA
from arctic_training.callback.hooks import hook
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.data.batching.loader import Batch
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.averaging import averaged_weights
from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.engine.replaced_weights import replaced_weights
from arctic_training.metrics import Metrics, Number
from arctic_training.state import eval_mode
from arctic_training.trainer.evaluation import ValidationMetrics
from arctic_training.trainer.resume import Loading
from arctic_training.trainer.view import View
from arctic_training.trainer.window import AccumulationWindow


class Updates(View, ValidationMetrics, Loading):
    """Part of `Trainer`: what is recorded, the optimizer steps of the roles, and averages of their weights."""

    listeners: Mapping[str, Callback[ComponentConfig]]
    metrics: Metrics
    window: AccumulationWindow

    def record(self, name: str, value: Number, weight: Number = 1) -> None:
        """Adds a scalar to the mean that is logged as ``name``; every rank must record the same names."""
        self.metrics.add(name, value, weight)

    @torch.no_grad()
    def window_sum(self, statistic: Callable[[Batch], Tensor]) -> Tensor:
        """Returns the sum of ``statistic``, a method that maps a micro-batch to a tensor ``[...]`` of one shape, over
        all micro-batches of the window, on all ranks: ``[...]``.

        Called in `loss` for every micro-batch. It is computed with the first, in evaluation mode, so that all see the
        same number, by the weights before the step, however the global batch is split.
        """
        sums = self.window.sums
        if self.window.index == 0 or statistic not in sums:
            with eval_mode(engine.module for engine in self.trainable_engines.values()):
                parts = [statistic(batch) for batch in self.window.batches]
            sums[statistic] = collectives.all_reduce(torch.stack(parts).sum(0))
        return sums[statistic]

    def window_mean(self, statistic: Callable[[Batch], Tensor]) -> Tensor:
        """Returns the mean of ``statistic`` over the micro-batches of the window, on all ranks: ``[...]``; see
        `window_sum`. Of a sum over rows divided by ``num_items_in_batch`` it is the mean over the rows of the window.
        """
        return self.window_sum(statistic) / (self.window.size * process_group.world_size())

    def update(self, role: str, loss: Tensor) -> None:
        """Records ``loss``, a scalar ``[]``, and adds its gradient; ``role`` takes a step with the last micro-batch.

        It is called once for each micro-batch of a step. Which is the last, and how many there are, is read from the
        window: a role that steps more often than once in a window, or on a part of it, goes through the micro-batches
        by ``self.window.iterate``. The metric is ``loss`` for the primary role and ``loss/<role>`` for another. Raises
        ValueError for a role that is not trained.
        """
        engines = self.trainable_engines
        if role not in engines:
            raise ValueError(f"update: {role!r} is not a trained role; there are: {', '.join(engines)}")
        self.record("loss" if role == "model" else f"loss/{role}", loss)
        if role == "model":
            self.backward(loss)
        else:
            self._accumulate(engines[role], loss)
        engines[role].step()

    @hook("backward")
    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of ``loss``, a scalar tensor ``[]``, to that of the primary role's step, the mean over
        whose micro-batches is taken."""
        self._accumulate(self.trainable_engines["model"], loss)

    def _accumulate(self, engine: Engine, loss: Tensor) -> None:
        size, planned = len(self.window.step_indices), self.config.gradient_accumulation_steps
        engine.set_gradient_accumulation_boundary(self.window.is_last_micro_batch)
        # the engine divides by the planned number of micro-batches; a step may have fewer
        engine.backward(loss if size == planned else loss * (planned / size))

    @contextmanager
    def averaged(self, role: str = "model", *, purpose: Literal["evaluate", "export"] | None = None) -> Iterator[None]:
        """Runs the block with the average of the role's weights that its optimizer or a callback `ema` keeps, in place
        of them.

        Without such an optimizer, and without a callback that the recipe says to use for ``purpose``, the weights stay.
        They are the same to the bit afterwards; no step may be taken in the block. All ranks enter and leave together.
        """
        engine = self.engines[role]
        if isinstance(engine, TrainedEngine) and (weights := self._average(role, engine, purpose)) is not None:
            with replaced_weights(engine, weights):
                yield
        else:
            yield

    def _average(self, role: str, engine: TrainedEngine, purpose: str | None) -> Mapping[str, Tensor] | None:
        averages = (one for one in self.listeners.values() if isinstance(one, EMA) and one.config.role == role)
        average = next((one for one in averages if purpose is None or getattr(one.config, purpose)), None)
        return averaged_weights(engine) if average is None else average.weights
