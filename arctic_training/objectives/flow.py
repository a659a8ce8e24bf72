"""Normalizing flows, trained by their exact likelihood, and flow matching; both on request with classes."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.loss.flow import (
    TimeSampling,
    flow_matching_losses,
    flow_times,
    linear_path,
    normal_log_probs,
    with_divergences,
)
from arctic_training.model.factory import ModelFactory
from arctic_training.model.time_mlp_factory import TimeMLPFactory
from arctic_training.model.unet_factory import UNetFactory
from arctic_training.model.zuko_factory import ZukoFactory
from arctic_training.objectives.conditional import NO_CONDITION, Condition, ConditionalConfig, ConditionalTrainer
from arctic_training.objectives.ode import Solver, solve_ode
from arctic_training.trainer.role import frozen_parameters

_NOISE, _TIMES, _SAMPLES, _DROPPED_LABELS = range(4)
"""Streams of noise: for the beginnings of paths, for times on them, for samples, and for ``label_dropout``."""
_MATCHING = OnlyWith("objective", "flow_matching")


class FlowConfig(ConditionalConfig):
    """Keys of the trainer `flow`."""

    objective: Literal["nll", "flow_matching"] = "nll"
    """nll: the exact negative log-likelihood of a normalizing flow; flow_matching: the velocity at which noise becomes
    data along straight lines."""
    time_sampling: Annotated[TimeSampling, _MATCHING] = "uniform"
    """Times that flow_matching trains at: uniform, logit_normal (more in the middle) or u_shaped (more at the ends)."""
    ode_solver: Annotated[Solver, _MATCHING] = "heun"
    """How flow_matching follows the velocity: by euler, heun or rk4, of order 1, 2 and 4."""
    ode_steps: Annotated[HumanInt, _MATCHING] = Field(default=50, ge=1)
    """Steps from noise to data."""
    eval_likelihood: Annotated[bool, _MATCHING] = False
    """Whether evaluations of flow_matching measure the negative log-likelihood too, exactly: a pass for each number of
    a row in every step of the solver, so for few numbers."""

    @model_validator(mode="after")
    def _check_objective(self) -> "FlowConfig":
        densities, velocities = [ZukoFactory.name], [TimeMLPFactory.name, UNetFactory.name]
        wrong, right = (velocities, densities) if self.objective == "nll" else (densities, velocities)
        if self.model.type in wrong:
            raise ValueError(f"model.type: {self.model.type} has no objective {self.objective}; use {right[0]}")
        if self.objective == "nll" and self.guidance_scale != 1:
            raise ValueError(
                "guidance_scale: guides the velocity of flow_matching, and the objective is nll; remove it"
            )
        return self


class FlowTrainer(ConditionalTrainer):
    """Trains a normalizing flow by its likelihood, or a velocity by flow matching.

    A batch has ``rows``, floats ``[N, ...]``, and ``draw``, int64 ``[N]``, from which noise and times are derived. With
    the objective ``nll`` the model maps rows ``[N, D]`` to log-probabilities ``[N]``, and with ``inverse=True``
    standard normal rows to data; with ``flow_matching`` it maps rows and times, float32 ``[N]`` from 0 (noise) to 1
    (data), to velocities ``[N, ...]``. One with ``num_labels`` reads labels too, int64 ``[N]``, -100 for none.
    """

    name = "flow"
    config_type = FlowConfig
    config: FlowConfig
    model_factory_type: ClassVar[type[ModelFactory[Any]] | tuple[type[ModelFactory[Any]], ...]] = (
        ZukoFactory,
        TimeMLPFactory,
        UNetFactory,
    )
    label_dropout_stream = _DROPPED_LABELS

    def check_data(self) -> None:
        """Raises `DataError` for rows that are no floats."""
        super().check_data()
        self.require_float_rows()

    def check(self) -> None:
        """Raises `ModelError` for a model that does not fit the rows."""
        super().check()
        label = torch.zeros(1, dtype=torch.int64, device=self.device) if self.num_labels else None
        if self.config.objective == "nll":
            self.check_output(lambda rows: self.log_probs(rows, label), ())
        else:
            self.check_output(lambda rows: self._velocities(self.model, rows, 0, label))

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        return ("nll",) if self.config.objective == "flow_matching" and self.config.eval_likelihood else ()

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the rows of the window, a float32 scalar: of the negative
        log-likelihoods, in nats, or of the squared errors of the velocities, each summed over a row."""
        config, rows, draw, labels = self.config, batch["rows"].float(), batch["draw"], self.labels(batch)
        items: float = batch["num_items_in_batch"]
        if config.objective == "nll":
            return -self.log_probs(rows, labels).sum() / items
        times = flow_times(config.time_sampling, self.uniform(draw, stream=_TIMES)).float()
        noise = self.normal(draw, rows.shape[1:], stream=_NOISE)
        velocities = self._velocities(self.model, linear_path(noise, rows, times), times, labels)
        if config.eval_likelihood and not torch.is_grad_enabled():
            self.record("nll", -self.log_probs(rows, labels).sum() / items)
        return flow_matching_losses(velocities, noise, rows).sum() / items

    def log_probs(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the exact log-likelihoods of ``rows``, float32 ``[n, ...]``, in nats: ``[n]``; of a model with labels
        those given ``labels``, int64 ``[n]``, -100 for none, as all are by default.

        With flow_matching by the change of variables along the path back to noise (Chen et al. 2018, arXiv 1806.07366,
        theorem 1), up to the error of the solver, and without a gradient.
        """
        if self.config.objective == "nll":
            log_probs: Tensor = self.model(rows.flatten(1), **_model_arguments(labels))
            return log_probs
        with frozen_parameters(self.model) as module:

            def velocities(points: Tensor, time: Tensor) -> Tensor:
                copies = None if labels is None else labels.repeat(len(points) // max(len(labels), 1))
                return self._velocities(module, points.reshape(-1, *rows.shape[1:]), time, copies).flatten(1)

            return path_log_probs(
                velocities, rows.flatten(1), steps=self.config.ode_steps, solver=self.config.ode_solver
            )

    def generate_rows(self, draw: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        noise, config = self.normal(draw, self.row_shape, stream=_SAMPLES), self.config
        if config.objective == "nll":
            rows: Tensor = self.model(noise.flatten(1), inverse=True, **_model_arguments(condition.labels))
            return rows.reshape(noise.shape)

        def derivative(points: Tensor, time: float) -> Tensor:
            return condition.guided(lambda labels: self._velocities(self.model, points, time, labels))

        return solve_ode(derivative, noise, start=0, end=1, steps=config.ode_steps, solver=config.ode_solver)

    def _velocities(
        self, model: Callable[..., Tensor], points: Tensor, times: Tensor | float, labels: Tensor | None
    ) -> Tensor:
        times = times if isinstance(times, Tensor) else points.new_full([len(points)], times)
        return model(self.cast(points), times, **_model_arguments(labels)).float()


def _model_arguments(labels: Tensor | None) -> dict[str, Tensor]:
    """Returns the argument of a network that reads labels."""
    return {} if labels is None else {"labels": labels}


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
    end = solve_ode(derivative, start, start=1, end=0, steps=steps, solver=solver)
    return normal_log_probs(end[:, :-1]) + end[:, -1]
