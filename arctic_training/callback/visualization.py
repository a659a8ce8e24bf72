"""Draws rows that the trainer generates: image grids, scatter plots, curves, histograms."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from arctic_training.callback.sample_tensors import SampleTensors, SampleTensorsConfig
from arctic_training.component import TrainerView
from arctic_training.errors.types import RecipeError
from arctic_training.tracker.figure import figure, require_matplotlib
from arctic_training.tracker.samples import ImageSamples, Samples, tensor_samples

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
    config_type = VisualizationConfig
    config: VisualizationConfig

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a trainer that generates no rows, `MissingDependencyError` without matplotlib."""
        super().check_recipe(trainer)
        require_matplotlib("callbacks.visualization")

    def sample(self, trainer: TrainerView) -> Samples:
        """Raises `RecipeError` for a plot that does not suit the rows."""
        config, rows = self.config, self.rows(trainer).detach().float().cpu()
        plot = plot_of(rows) if config.plot == "auto" else config.plot
        if plot == "images":
            grid = tensor_samples(rows, low=config.low, high=config.high, columns=config.columns)
            if isinstance(grid, ImageSamples):
                return grid
        flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
        if plot == "images" or (plot == "scatter" and flat.shape[1] < 2):
            raise RecipeError(f"callbacks.visualization.plot: {plot} does not suit rows of shape {[*rows.shape[1:]]}")
        title = f"step {trainer.progress.step}"
        return figure(lambda axes: draw(axes, flat.numpy(), plot, title))


def plot_of(rows: torch.Tensor) -> str:
    """Returns the plot that suits rows ``[N, ...]``."""
    if rows.ndim == 3 or (rows.ndim == 4 and rows.shape[1] in (1, 3)):
        return "images"
    numbers = rows[0].numel() if len(rows) else 1
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
