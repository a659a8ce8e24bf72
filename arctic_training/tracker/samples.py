"""Samples of a run's models, and the files that they are written to."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Samples(ABC):
    """Samples that the models of a run generate at one step."""

    suffix: str
    """The suffix of its file."""

    def write(self, folder: Path, step: int) -> Path:
        """Writes the file ``step_<step>`` in ``folder``, complete or not at all, and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step_{step}{self.suffix}"
        unfinished = path.with_name(f".{path.name}")
        self._write(unfinished)
        os.replace(unfinished, path)
        return path

    @abstractmethod
    def _write(self, path: Path) -> None: ...


@dataclass(frozen=True)
class TextSamples(Samples):
    """Texts, written as JSON lines."""

    rows: Sequence[Mapping[str, str | float]]
    """The texts of each sample by name, such as ``prompt`` and ``completion``, and numbers such as rewards."""

    suffix = ".jsonl"

    def _write(self, path: Path) -> None:
        lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in self.rows)
        path.write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class ImageSamples(Samples):
    """Images, written as one PNG with the images in rows."""

    images: Tensor
    """uint8 ``[N, H, W, 1]`` (grey) or ``[N, H, W, 3]`` (red, green, blue), on the CPU."""
    columns: int = 8
    """Images in a row of the picture."""

    suffix = ".png"

    @property
    def grid(self) -> Tensor:
        """All images in one, with a border of one pixel between them: uint8 ``[H, W, 1]`` or ``[H, W, 3]``."""
        count, height, width, channels = self.images.shape
        columns = min(self.columns, count)
        rows = -(-count // columns)
        grid = torch.zeros(rows * (height + 1) - 1, columns * (width + 1) - 1, channels, dtype=torch.uint8)
        for n, image in enumerate(self.images):
            top, left = n // columns * (height + 1), n % columns * (width + 1)
            grid[top : top + height, left : left + width] = image
        return grid

    def _write(self, path: Path) -> None:
        from PIL import Image

        grid = self.grid.numpy()
        Image.fromarray(grid[:, :, 0] if grid.shape[2] == 1 else grid).save(path, format="png")


@dataclass(frozen=True)
class ArraySamples(Samples):
    """Any other rows of numbers, written as a file of numpy."""

    rows: Tensor
    """``[N, ...]``, on the CPU."""

    suffix = ".npy"

    def _write(self, path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, self.rows.numpy())


def tensor_samples(rows: Tensor, *, low: float = 0.0, high: float = 1.0, columns: int = 8) -> Samples:
    """Returns the samples ``rows``, ``[N, ...]``, as images where they are images, else as arrays.

    Images are ``[N, H, W]``, ``[N, 1, H, W]`` or ``[N, 3, H, W]`` with values between ``low`` (black) and ``high``;
    values beyond are clipped.
    """
    rows = rows.detach().float().cpu()
    images = rows[:, None] if rows.ndim == 3 else rows
    if not len(images) or images.ndim != 4 or images.shape[1] not in (1, 3):
        return ArraySamples(rows)
    scaled = (images - low).div(high - low).clamp(0, 1).mul(255).round()
    return ImageSamples(scaled.byte().movedim(1, 3).contiguous(), columns)
