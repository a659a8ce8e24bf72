"""Tries learning rates before the first step, and suggests one: the range test of Smith (2017, arXiv 1506.01186)."""

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, model_validator

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.host_copy import host_copy
from arctic_training.engine.snapshot import restore, snapshot, weights
from arctic_training.logging import logger
from arctic_training.tracker.figure import figure, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMOOTHING = 0.9
"""Weight of the losses before in the exponential mean that is compared."""


class LearningRateFinderConfig(ComponentConfig):
    """Options of the callback `learning_rate_finder`."""

    min_lr: HumanFloat = Field(default=1e-7, gt=0)
    """The first learning rate."""
    max_lr: HumanFloat = Field(default=1.0, gt=0)
    """The last one."""
    steps: HumanInt = Field(default=100, ge=10)
    """Steps from one to the other, each with a learning rate that is larger by the same factor."""
    divergence: HumanFloat = Field(default=4.0, gt=1)
    """End when the mean loss is this many times the smallest."""
    use: bool = False
    """Train with the suggestion as the peak of the schedule, in place of ``optimizer.lr``."""

    @model_validator(mode="after")
    def _check_range(self) -> "LearningRateFinderConfig":
        if self.min_lr >= self.max_lr:
            raise ValueError(f"max_lr: {self.max_lr:g} must be above min_lr: {self.min_lr:g}")
        return self


class LearningRateFinder(Callback[LearningRateFinderConfig]):
    """Tries learning rates before the first step, draws the losses, and suggests the one at which they fall fastest.

    Afterwards weights, optimizers, generators, metrics and the position in the data are as before, so the run is the
    same, except for the learning rate with ``use``. It needs host memory for a copy of weights and optimizers.
    """

    name = "learning_rate_finder"
    suggestion = 0.0
    """The learning rate that is suggested; 0: none."""
    _tried = 0.0
    """The learning rate of the step, while they are tried."""

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `MissingDependencyError` without matplotlib."""
        require_matplotlib("callbacks.learning_rate_finder")

    def post_init(self, trainer: TrainerView) -> None:
        """Has the engine step with the learning rates that are tried, and with the one that is used."""
        peak = trainer.config.optimizer.learning_rate

        def rule(lr: float) -> float:
            used = self.suggestion if self.config.use and peak else 0.0
            return self._tried or (lr * (used / peak) if used else lr)

        engine = trainer.trainable_engines["model"]
        assert isinstance(engine, TrainedEngine)
        engine.add_lr_rule(rule)

    def pre_train(self, trainer: TrainerView) -> None:
        """Tries the learning rates, unless the run was resumed or has nothing to train."""
        if trainer.progress.step or not trainer.training_horizon:
            return
        with _restored(trainer):
            try:
                lrs, losses = self._try(trainer)
            finally:
                self._tried = 0.0
        self.suggestion = suggest(lrs, losses)
        used = (
            "which the run uses" if self.config.use else f"and the run uses {trainer.config.optimizer.learning_rate:g}"
        )
        if self.suggestion:
            logger.success(f"learning_rate_finder: the loss falls fastest at {self.suggestion:.3g}, {used}")
        else:
            logger.warning(f"learning_rate_finder: the loss does not fall at any of {lrs[0]:.3g} to {lrs[-1]:.3g}")
        self._write(trainer, lrs, losses)

    def _try(self, trainer: TrainerView) -> tuple[list[float], list[float]]:
        """Returns the learning rates that were tried, and the loss of the step before each: its weights are those that
        the smaller ones have led to."""
        config, losses, lrs = self.config, list[float](), list[float]()
        step_losses: list[torch.Tensor] = []
        trainer.listen("post-loss", lambda _, loss: step_losses.append(loss.detach()))
        batches, smallest = _endless(trainer), math.inf
        for n in range(config.steps):
            self._tried = config.min_lr * (config.max_lr / config.min_lr) ** (n / (config.steps - 1))
            step_losses.clear()
            for batch in batches:
                trainer.step(batch)
                if trainer.window.is_last_micro_batch:
                    break
            if not step_losses:
                break
            mean = torch.stack(step_losses).double().mean().cpu()
            total, ranks = collectives.all_reduce(torch.stack([mean, torch.ones_like(mean)])).tolist()
            lrs.append(self._tried)
            losses.append(total / ranks)
            smooth = _smoothed(losses)[-1]
            smallest = min(smallest, smooth)
            if not smooth <= smallest + (config.divergence - 1) * abs(smallest):  # NaN too
                break
        batches.close()
        return lrs, losses

    def _write(self, trainer: TrainerView, lrs: list[float], losses: list[float]) -> None:
        trainer.log_samples(self.label, figure(lambda axes: _draw(axes, lrs, losses, self.suggestion)))
        if process_group.is_main():
            lines = ["lr,loss\n", *(f"{lr!r},{loss!r}\n" for lr, loss in zip(lrs, losses, strict=True))]
            (trainer.run_dir / "samples" / self.label / "curve.csv").write_text("".join(lines), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        return {"suggestion": self.suggestion}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.suggestion = float(state["suggestion"])


@contextmanager
def _restored(trainer: TrainerView) -> Iterator[None]:
    """Restores inside and after the block all that steps change; callbacks of the recipe hear nothing of it."""
    engines = [engine for engine in trainer.trainable_engines.values() if isinstance(engine, TrainedEngine)]
    saved = [(engine, host_copy(snapshot(engine)), host_copy(weights(engine))) for engine in engines]
    state, listeners = host_copy(trainer.state.state_dict()), list(trainer.callbacks)
    # those of the trainer's own class may change batches and losses
    trainer.callbacks[:] = [one for one in listeners if not isinstance(getattr(one[1], "__self__", None), Callback)]
    try:
        yield
    finally:
        trainer.callbacks[:] = listeners
        for engine, own, tensors in saved:
            restore(engine, own, tensors)
        trainer.state.load_state_dict(state)


def _endless(trainer: TrainerView) -> Generator[Any]:
    """Yields micro-batches, from the beginning again after the last; none when there are none."""
    some = True
    while some:
        some = False
        for batch in trainer.train_batches:
            some = True
            yield batch


def suggest(lrs: list[float], losses: list[float]) -> float:
    """Returns the learning rate at which the smoothed loss falls fastest by the logarithm of it; 0 if it never does.

    Losses that are not finite, and everything after them, are left out.
    """
    finite = next((n for n, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < 3:
        return 0.0
    smooth = _smoothed(losses[:finite])
    slopes = np.gradient(smooth, np.log(lrs[:finite]))
    best = int(np.argmin(slopes[: int(np.argmin(smooth)) + 1]))
    return lrs[best] if slopes[best] < 0 else 0.0


def _smoothed(losses: list[float]) -> list[float]:
    """Returns exponential means, corrected for their start."""
    mean, means = 0.0, list[float]()
    for n, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        means.append(mean / (1 - _SMOOTHING**n))
    return means


def _draw(axes: "Axes", lrs: list[float], losses: list[float], suggestion: float) -> None:
    axes.plot(lrs, losses, alpha=0.4, label="loss")
    axes.plot(lrs, _smoothed(losses), label="smoothed")
    if suggestion:
        axes.axvline(suggestion, linestyle="--", color="black", label=f"suggestion: {suggestion:.3g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
