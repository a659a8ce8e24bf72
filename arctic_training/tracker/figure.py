"""Figures drawn by matplotlib, as images that a run writes and logs."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from arctic_training.errors.types import MissingDependencyError
from arctic_training.tracker.samples import ImageSamples

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def require_matplotlib(where: str) -> None:
    """Raises `MissingDependencyError`, which names ``where`` in the recipe, when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{where}: needs the library matplotlib: pip install matplotlib") from error


def figure(draw: Callable[["Axes"], None]) -> ImageSamples:
    """Returns what ``draw`` draws into the axes of a figure: one image of 640 x 480 pixels.

    No window is opened, and matplotlib's state in the process is not changed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained"))
    draw(canvas.figure.subplots())
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]
    return ImageSamples(torch.from_numpy(pixels)[None], columns=1)
