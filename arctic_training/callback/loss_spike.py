"""Leaves out a window whose training loss is far above those before."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from arctic_training.callback.rewind import rewind
from arctic_training.callback.spikes import SpikeCallback, SpikeConfig
from arctic_training.component import TrainerView
from arctic_training.errors.types import RecipeError, TrainingError
from arctic_training.logging import logger


class LossSpikeConfig(SpikeConfig):
    """Options of the callback `loss_spike`."""

    action: Literal["warn", "skip", "back"] = "skip"
    """At a spike: log it, take no step on its window, or go back to the newest checkpoint and leave the window out."""
    limit: int = Field(default=10, ge=0)
    """Most spikes in a row (``skip``), or most times to go back in all (``back``), before the run fails."""

    @property
    def goes_back(self) -> bool:
        """Returns whether the run needs checkpoints that it can go back to."""
        return self.action == "back"


class LossSpike(SpikeCallback[LossSpikeConfig]):
    """Leaves out a window whose training loss is far above those of the steps before.

    ``skip`` decides before the last backward pass of a step and waits for its loss there; the step counts, and leaves
    weights, optimizer and schedule as they were. ``back`` and ``warn`` decide after the step.
    """

    name = "loss_spike"
    total = 0
    """Spikes over the whole run."""
    _in_a_row = 0

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for an action that this run cannot take."""
        if self.config.action == "skip" and trainer.config.model.dtype == "fp16":
            raise RecipeError(
                "callbacks.loss_spike.action: skip would lower the scale of the loss in fp16; set back, or "
                "model.dtype: bf16"
            )

    def pre_backward(self, trainer: TrainerView, loss: Tensor) -> Tensor | None:
        """Replaces the loss of a window to be skipped by NaN, by which the engine takes no step on any rank.

        Raises `TrainingError` after too many in a row.
        """
        if self.config.action != "skip" or not trainer.window.is_last_micro_batch:
            return None
        if not (spike := self._find(trainer)):
            return None
        step, limit = trainer.progress.step + 1, self.config.limit
        if self._in_a_row > limit:
            raise TrainingError(
                f"step {step}: {spike}; that is {self._in_a_row} in a row, and loss_spike.limit is {limit}"
            )
        logger.warning(f"step {step}: {spike}; skipped, {self.total} in all")
        trainer.window.skipped_steps += 1
        return loss * math.nan

    def pre_after_update(self, trainer: TrainerView) -> None:
        """Goes back, or warns. Raises `TrainingError` when the run went back too often, or cannot."""
        if self.config.action == "skip" or not (spike := self._find(trainer)):
            return
        text, limit = f"step {trainer.progress.step}: {spike}", self.config.limit
        if self.config.action == "warn":
            logger.warning(text)
            return
        if self.total > limit:
            raise TrainingError(f"{text}; the run went back {limit} times, which is loss_spike.limit")
        rewind(trainer, text, "loss_spike.action: back", TrainingError)

    def _find(self, trainer: TrainerView) -> str:
        """Counts and returns the spike of the step; empty when there is none."""
        spike = self.find_spike(self.step_loss(), left_out=self.config.action != "warn")
        trainer.record("spikes", float(bool(spike)))
        self.total += bool(spike)
        self._in_a_row = self._in_a_row + 1 if spike else 0
        return spike

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "total": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restores the state; a run that goes back knows more spikes than its checkpoint."""
        super().load_state_dict(state)
        self.total, self._in_a_row = max(self.total, int(state["total"])), int(state["in_a_row"])
