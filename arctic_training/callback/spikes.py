"""Training losses that are far above those before: how callbacks find them."""

import math
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.distributed import collectives


class SpikeConfig(ComponentConfig):
    """Options of every callback that finds spikes of the training loss."""

    window: HumanInt = Field(default=50, ge=2)
    """Steps before, with whose losses each is compared; during the first of them there are no spikes."""
    threshold: HumanFloat = Field(default=6.0, gt=0)
    """Standard deviations above their mean from which on a loss is a spike."""
    min_delta: HumanFloat = Field(default=0.1, ge=0)
    """Distance above their mean that a spike has at least: losses that hardly differ have none."""


S = TypeVar("S", bound=SpikeConfig)


class SpikeCallback(Callback[S]):
    """Base of callbacks that find spikes: of the mean loss of a step over all ranks, which the run waits for.

    A loss that is not finite is left to `nan_guard`.
    """

    config_type: ClassVar[type[ComponentConfig]] = SpikeConfig

    def __init__(self, config: S) -> None:
        super().__init__(config)
        self.history: list[float] = []
        """The latest losses that the weights were trained on, the oldest first."""
        self._losses: list[Tensor] = []

    def post_loss(self, trainer: TrainerView, loss: Tensor) -> None:
        """Keeps the scalar ``loss`` of a micro-batch."""
        if torch.is_grad_enabled():  # else it is of an evaluation
            self._losses.append(loss.detach())

    def step_loss(self) -> float:
        """Returns the mean of the losses since the last call, over all ranks; all of them call it together."""
        losses, self._losses = self._losses, []
        if not losses:
            return math.nan
        total = torch.stack([one.reshape(()).double() for one in losses]).sum().cpu()
        total, count = collectives.all_reduce(torch.stack([total, torch.tensor(len(losses)).double()])).tolist()
        return float(total / count)

    def find_spike(self, loss: float, *, left_out: bool = False) -> str:
        """Returns what ``loss`` is above when it is a spike; empty when it is none.

        Later losses are compared with it too, unless it is a spike that is ``left_out`` of the training.
        """
        config, text = self.config, ""
        if not math.isfinite(loss):
            return ""
        if len(self.history) >= config.window:
            mean, deviation = statistics.fmean(self.history), statistics.pstdev(self.history)
            if loss - mean > max(config.threshold * deviation, config.min_delta):
                text = f"the loss {loss:.4g} is far above the {mean:.4g} +- {deviation:.2g} of {config.window} steps"
        if not (text and left_out):
            self.history = [*self.history, loss][-config.window :]
        return text

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.history, self._losses = [float(loss) for loss in state["history"]], []
