"""Draws rows that the trainer generates: image grids, scatter plots, curves, histograms."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from arctic_training.callback.sample_tensors import SampleTensors, SampleTensorsConfig
from arctic_training.component import TrainerView
from arctic_training.errors.types import RecipeError
from arctic_training.tracker.figure import figure, require_matplotlib
from arctic_training.tracker.samples import Samples, tensor_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CURVES = 64
"""The most rows that are drawn as curves: more cannot be told apart."""


class VisualizationConfig(SampleTensorsConfig):
    """Options of the callback `visualization`."""

    plot: Literal["auto", "images", "scatter", "curves", "histogram"] = "auto"
    """``images``: rows of images as a grid; ``scatter``: the first two numbers of each row as a point; ``curves``: each
    row as a line; ``histogram``: all numbers; ``auto``: by the shape of a row."""


class Visualization(SampleTensors):
    """Draws rows that the trainer's method ``sample`` generates as a PNG, whatever their shape."""

    name = "visualization"
    config: VisualizationConfig

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a trainer that generates no rows, `MissingDependencyError` without matplotlib."""
        super().check_recipe(trainer)
        require_matplotlib("callbacks.visualization")

    def check(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a ``shape`` or a ``plot`` that does not suit the rows of the data."""
        super().check(trainer)
        row = self.config.shape or getattr(trainer, "row_shape", None)
        if row is not None:
            self._check_plot(row)

    def sample(self, trainer: TrainerView) -> Samples:
        """Raises `RecipeError` for a ``plot`` that does not suit the rows."""
        config, rows = self.config, self.rows(trainer).detach().float().cpu()
        self._check_plot(rows.shape[1:])
        plot = plot_of(rows.shape[1:]) if config.plot == "auto" else config.plot
        if plot == "images":
            return tensor_samples(rows, low=config.low, high=config.high, columns=config.columns)
        flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
        title = f"step {trainer.progress.step}"
        return figure(lambda axes: draw(axes, flat.numpy(), plot, title))

    def _check_plot(self, row: Sequence[int]) -> None:
        plot = self.config.plot
        if (plot == "images" and plot_of(row) != plot) or (plot == "scatter" and math.prod(row) < 2):
            raise RecipeError(f"callbacks.visualization.plot: {plot} does not suit rows of shape {[*row]}")


def plot_of(row: Sequence[int]) -> str:
    """Returns the plot that suits rows of the shape ``row``."""
    if len(row) == 2 or (len(row) == 3 and row[0] in (1, 3)):
        return "images"
    numbers = math.prod(row)
    return {1: "histogram", 2: "scatter"}.get(numbers, "curves")


def draw(axes: "Axes", rows: np.ndarray[tuple[int, int], np.dtype[np.float32]], plot: str, title: str) -> None:
    """Draws ``rows`` ``[N, numbers]``; those that are not finite are left out."""
    rows = rows[np.isfinite(rows).all(1)]
    if plot == "scatter":
        axes.scatter(rows[:, 0], rows[:, 1], s=8, alpha=0.6)
        axes.set_aspect("equal", adjustable="datalim")
    elif plot == "curves":
        axes.plot(rows[:_MOST_CURVES].T, linewidth=0.8, alpha=0.6)
    else:
        axes.hist(rows.ravel(), bins="auto")
    axes.set_title(title)
