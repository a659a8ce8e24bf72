"""Normalizing flows, trained by their exact likelihood, and flow matching."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.batching.noise import normal, uniform
from arctic_training.loss.flow import (
    TimeSampling,
    flow_matching_losses,
    flow_times,
    interpolate,
    normal_log_probs,
    with_divergences,
)
from arctic_training.model.factory import ModelFactory
from arctic_training.model.time_mlp_factory import TimeMLPFactory
from arctic_training.model.zuko_factory import ZukoFactory
from arctic_training.objectives.float_rows import require_float_rows
from arctic_training.objectives.ode import Solver, integrate
from arctic_training.objectives.tensor import TensorTrainer
from arctic_training.state import isolated_eval
from arctic_training.trainer.role import frozen_parameters

_NOISE, _TIMES, _SAMPLES = range(3)
"""Streams of noise: for the beginnings of paths, for times on them, and for `FlowTrainer.sample`."""


class FlowConfig(TrainerConfig):
    """Keys of the trainer `flow`."""

    objective: Literal["nll", "flow_matching"] = "nll"
    """nll: the exact negative log-likelihood of a normalizing flow; flow_matching: the velocity at which noise becomes
    data along straight lines."""
    time_sampling: TimeSampling = "uniform"
    """Times that flow_matching trains at: uniform, logit_normal (more in the middle) or u_shaped (more at the ends)."""
    ode_solver: Solver = "heun"
    """How flow_matching follows the velocity: by euler, heun or rk4, of order 1, 2 and 4."""
    ode_steps: HumanInt = Field(default=50, ge=1)
    """Steps from noise to data."""
    eval_likelihood: bool = False
    """Whether evaluations of flow_matching measure the negative log-likelihood too, exactly: a pass for each number of
    a row in every step of the solver, so for few numbers."""

    @model_validator(mode="after")
    def _check_combination(self) -> "FlowConfig":
        nll = self.objective == "nll"
        if nll and (self.time_sampling != "uniform" or self.eval_likelihood):
            key = "eval_likelihood" if self.eval_likelihood else "time_sampling"
            raise ValueError(f"{key}: is of flow_matching, and the objective is nll; remove it")
        wrong, right = (TimeMLPFactory, ZukoFactory) if nll else (ZukoFactory, TimeMLPFactory)
        if self.model.type == wrong.name:
            raise ValueError(f"model.type: {wrong.name} has no objective {self.objective}; use {right.name}")
        return self


class FlowTrainer(TensorTrainer):
    """Trains a normalizing flow by its likelihood, or a velocity by flow matching.

    A batch has ``rows``, floats ``[N, ...]``, and ``draw``, int64 ``[N]``, from which noise and times are derived. With
    the objective ``nll`` the model maps rows ``[N, D]`` to log-probabilities ``[N]``, and with ``inverse=True``
    standard normal rows to data; with ``flow_matching`` it maps rows and times, float32 ``[N]`` from 0 (noise) to 1
    (data), to velocities ``[N, ...]``.
    """

    name = "flow"
    config_type = FlowConfig
    config: FlowConfig
    model_factory_type: ClassVar[type[ModelFactory[Any]] | tuple[type[ModelFactory[Any]], ...]] = (
        ZukoFactory,
        TimeMLPFactory,
    )

    def check(self) -> None:
        """Raises `DataError` for data that the model does not fit."""
        super().check()
        features, sizes = (getattr(self.config.model, key, None) for key in ("features", "sizes"))
        width, key = (features, "model.features") if features else (sizes and sizes[0], "model.sizes[0]")
        self._row_shape = require_float_rows(self.tables("rows"), width=width, width_key=key)

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the rows of the window, a float32 scalar: of the negative
        log-likelihoods, in nats, or of the squared errors of the velocities, each summed over a row."""
        rows, draw, items = batch["rows"].float(), batch["draw"], float(batch["num_items_in_batch"])
        if self.config.objective == "nll":
            losses = -self.log_probs(rows)
        else:
            times = flow_times(self.config.time_sampling, uniform(draw, 1, seed=self.config.seed, stream=_TIMES)[:, 0])
            noise, times = self._noise(draw, _NOISE), times.float()
            losses = flow_matching_losses(
                self._velocities(self.model, interpolate(noise, rows, times), times), noise, rows
            )
            if self.config.eval_likelihood and not torch.is_grad_enabled():
                self.record("nll", -self.log_probs(rows).sum() / items)
        return losses.sum() / items

    def log_probs(self, rows: Tensor) -> Tensor:
        """Returns the exact log-likelihoods of ``rows``, float32 ``[n, ...]``, in nats: ``[n]``.

        With flow_matching by the change of variables along the path back to noise (Chen et al. 2018, arXiv 1806.07366,
        theorem 1), up to the error of the solver, and without a gradient.
        """
        if self.config.objective == "nll":
            log_probs: Tensor = self.model(rows.flatten(1))
            return log_probs
        with frozen_parameters(self.model) as module:
            return path_log_probs(
                lambda points, time: self._velocities(module, points.reshape(-1, *rows.shape[1:]), time).flatten(1),
                rows.flatten(1),
                steps=self.config.ode_steps,
                solver=self.config.ode_solver,
            )

    def sample(self, count: int) -> Tensor:
        """Returns ``count`` generated rows, float32 ``[count, ...]``, from the same noise every time; of the averaged
        weights if the callback `ema` keeps them."""
        noise, config = self._noise(torch.arange(count, device=self.device), _SAMPLES), self.config
        with self.averaged("model"), isolated_eval([self.model.module]):
            if config.objective == "nll":
                rows: Tensor = self.model(noise.flatten(1), inverse=True).reshape(noise.shape)
                return rows
            return integrate(
                lambda points, time: self._velocities(self.model, points, points.new_full([len(points)], time)),
                noise,
                start=0,
                end=1,
                steps=config.ode_steps,
                solver=config.ode_solver,
            )

    def _velocities(self, model: Callable[..., Tensor], points: Tensor, times: Tensor) -> Tensor:
        dtype = next(self.model.module.parameters()).dtype
        return model(points.to(dtype), times).float()

    def _noise(self, draw: Tensor, stream: int) -> Tensor:
        noise = normal(draw, self._row_shape.numel(), seed=self.config.seed, stream=stream)
        return noise.reshape(-1, *self._row_shape)


def path_log_probs(
    velocities: Callable[[Tensor, Tensor], Tensor], points: Tensor, *, steps: int, solver: Solver
) -> Tensor:
    """Returns the log-densities at ``points``, float ``[n, D]``, of what is standard normal at the time 0: ``[n]``.

    ``velocities(points, times)`` maps ``[m, D]`` and times ``[m]`` to ``[m, D]``, row by row. The density changes along
    a path by the divergence of the velocity there, which is exact: Chen et al. 2018 (arXiv 1806.07366), theorem 1.
    """

    def derivative(state: Tensor, time: float) -> Tensor:
        at_time = lambda rows: velocities(rows, rows.new_full([len(rows)], time))  # noqa: E731
        velocity, divergence = with_divergences(at_time, state[:, :-1])
        return torch.cat([velocity, divergence[:, None]], dim=1)

    start = torch.cat([points, points.new_zeros(len(points), 1)], dim=1)
    end = integrate(derivative, start, start=1, end=0, steps=steps, solver=solver)
    return normal_log_probs(end[:, :-1]) + end[:, -1]
