"""The source of pictures: a folder of files, or a data set of the hub or of files with a column of pictures."""

import io
import itertools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from arctic_training.config.sections.types import HumanInt
from arctic_training.data.sources.huggingface import HFDataSource, HFDataSourceConfig
from arctic_training.data.sources.picture_folder import find_pictures
from arctic_training.display.activity import activity
from arctic_training.display.libraries import without_progress_bars
from arctic_training.distributed import collectives
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.errors.types import DataError
from arctic_training.logging import logger

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""Numbers of each pixel, by mode."""
_MORE_BITS = ("I", "F")
"""How modes of more than 8 bits begin, of which Pillow's conversion keeps the lowest values only."""
_AT_ONCE = 1_000
"""Pictures of which the compressed bytes are in memory at once."""
Pixels = npt.NDArray[np.uint8]
Entry = Mapping[str, Any] | None
"""A picture in a column that is not decoded: its ``bytes``, or else its ``path``."""


class ImageConfig(HFDataSourceConfig):
    """A source of pictures."""

    size: HumanInt | tuple[HumanInt, HumanInt] | None = None
    """Height and width in pixels, one number for both: each picture is scaled until it covers that, and cut at the
    centre. By default pictures stay as they are, and must have one size."""
    mode: Literal["L", "RGB", "RGBA"] | None = None
    """The mode of the pictures: L (grey, 1 channel), RGB (3) or RGBA (4). By default each keeps its own, which must be
    one of these."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """The numbers that 0 and 255, the darkest and the lightest value of a channel, become."""
    image_column: str | None = None
    """The column of pictures of a data set; by default its only one."""
    label_column: str | None = None
    """The column of labels of a data set; by default ``label`` or ``labels``, where there is one."""
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    """The names of the labels 0, 1, ...; by default those of the folders or of the column, in alphabetical order."""

    @property
    def local_size(self) -> float:
        """The bytes that its rows take, by those of the local files, in which pictures have a sixteenth or so."""
        return 16 * super().local_size

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if size is not None and min(_height_and_width(size)) < 1:
            raise ValueError("height and width are at least 1 pixel")
        return size

    @model_validator(mode="after")
    def _check_values(self) -> "ImageConfig":
        low, high = self.value_range
        if not low < high:
            raise ValueError(f"value_range: {low:g} is to be below {high:g}")
        if self.streaming:
            raise ValueError("streaming: pictures are read before training; leave it out")
        if self.classes and len({*self.classes}) < len(self.classes):
            raise ValueError("classes: each name is to occur once")
        return self


class ImageSource(HFDataSource):
    """Pictures, the column ``rows``, float32 ``[N, C, H, W]``, with their classes, ``labels``, int64 ``[N]``.

    All pictures are held in memory: 4 bytes for each number of each picture, in every process.
    """

    name = "images"
    config_type = ImageConfig
    config: ImageConfig
    label_names: list[str] | None = None
    """The names of the labels, once they are loaded; None where there are none."""

    def load(self, config: HFDataSourceConfig, split: str) -> dict[str, Tensor]:
        """Returns the columns ``rows`` and, where pictures have classes, ``labels``. Raises `DataError`."""
        from datasets import Image

        with collectives.main_process_first(), without_progress_bars(keep_in_terminal=True):
            rows: Dataset = super().load(config, split)
        column = self._image_column(rows)
        pictures = rows.select_columns([column]).cast_column(column, Image(decode=False))
        columns = {"rows": self._read_pictures(pictures, column)}
        if (labels := self._labels(rows)) is not None:
            columns["labels"] = labels
        shape, names = [*columns["rows"].shape[1:]], self.label_names
        what = "no labels" if labels is None else "labels" if names is None else f"labels of {', '.join(names)}"
        logger.info(f"{self}: {len(rows)} pictures of shape {shape}, {what}")
        return columns

    def read(self, name: str, config: HFDataSourceConfig) -> "Mapping[str, Dataset] | Dataset":
        """Returns the splits of a folder of pictures or of a data set. Raises `DataError`."""
        folder = None if config.kwargs else find_pictures(name)
        if folder is not None:
            return folder.splits(one_class=bool(self.config.classes))
        rows: Mapping[str, Dataset] | Dataset = super().read(name, config)
        return rows

    def _image_column(self, rows: "Dataset") -> str:
        """Returns the column of pictures. Raises `DataError`."""
        from datasets import Image

        if (column := self.config.image_column) is not None:
            self.require_column(rows, column, "image_column")
            if not isinstance(rows.features[column], Image):
                raise DataError(f"{self}: column {column} holds no pictures, but {rows.features[column]}")
            return column
        columns: list[str] = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        if len(columns) != 1:
            if columns:
                raise DataError(f"{self}: the columns {', '.join(columns)} hold pictures; name one by image_column")
            raise DataError(f"{self}: no column holds pictures; there are {', '.join(rows.column_names)}")
        return columns[0]

    def _labels(self, rows: "Dataset") -> Tensor | None:
        """Returns the labels of the pictures: int64 ``[N]``, or numbers as they are. Raises `DataError`."""
        from datasets import ClassLabel

        column = self.config.label_column
        if column is not None:
            self.require_column(rows, column, "label_column")
        column = column or next((name for name in ("label", "labels") if name in rows.column_names), None)
        if column is None:
            if self.config.classes:
                raise DataError(f"{self}: classes: there are no labels; there are {', '.join(rows.column_names)}")
            return None
        feature, values = rows.features[column], rows[:][column]
        if None in values:
            raise DataError(
                f"{self.place(values.index(None))}: {column} has no value; all pictures have a label, or none"
            )
        if isinstance(feature, ClassLabel):
            values = [feature.names[value] if value >= 0 else value for value in values]
            own = feature.names
        elif all(isinstance(value, str) for value in values):
            own = sorted({*values})
        else:
            try:
                return torch.tensor(values)
            except (TypeError, ValueError):
                raise DataError(f"{self}: column {column} holds {feature}; expected names, or numbers") from None
        self.label_names = self.config.classes or [*own]
        numbers = {name: number for number, name in enumerate(self.label_names)}
        unknown = {value for value in values if isinstance(value, str)} - numbers.keys()
        if unknown:
            names = ", ".join(sorted(unknown))
            raise DataError(f"{self}: classes: {names} of column {column} is not in {', '.join(self.label_names)}")
        return torch.tensor([numbers.get(value, value) for value in values], dtype=torch.int64)

    def _read_pictures(self, pictures: "Dataset", column: str) -> Tensor:
        """Returns the pictures of a column, which are not decoded: float32 ``[N, C, H, W]``. Raises `DataError`."""
        low, high = self.config.value_range
        values = (low + (high - low) * np.arange(256) / 255).astype(np.float32)
        first = pictures[0][column]
        expected = self._read_picture(0, first)
        rows = np.empty((len(pictures), *expected.shape), np.float32)

        def read(number: int, entry: Entry) -> None:
            pixels = self._read_picture(number, entry)
            if pixels.shape != expected.shape:
                raise DataError(_difference(self._place(number, entry), pixels, self._place(0, first), expected))
            rows[number] = values[pixels]

        cores = len(os.sched_getaffinity(0))
        with activity(f"reading {self}", len(rows)) as reading, ThreadPoolExecutor(cores) as pool:
            for start in range(0, len(rows), _AT_ONCE):
                for _ in pool.map(read, itertools.count(start), pictures[start : start + _AT_ONCE][column]):
                    reading.done += 1
                    record_heartbeat("reading pictures")
        return torch.from_numpy(rows)

    def _read_picture(self, number: int, entry: Entry) -> Pixels:
        """Returns the pixels of a picture, uint8 ``[C, H, W]``. Raises `DataError`."""
        from PIL import Image, ImageOps

        where = self._place(number, entry)
        if entry is None:
            raise DataError(f"{where}: there is no picture")
        try:
            with Image.open(io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"]) as file:
                picture = ImageOps.exif_transpose(file)  # loads it
        except Exception as error:  # each of Pillow's decoders has its own
            why = "it is of no known format" if type(error).__name__ == "UnidentifiedImageError" else str(error)
            raise DataError(f"{where}: the picture cannot be read: {why}") from None
        picture = self._convert(picture, where)
        if self.config.size is not None:
            height, width = _height_and_width(self.config.size)
            picture = ImageOps.fit(picture, (width, height))
        pixels = np.asarray(picture)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _convert(self, picture: "Image", where: str) -> "Image":
        """Returns the picture in the mode of the recipe. Raises `DataError`."""
        mode, known = self.config.mode, ", ".join(_CHANNELS)
        if picture.mode.startswith(_MORE_BITS):
            raise DataError(f"{where}: the picture has mode {picture.mode}, of more than 8 bits; convert it to {known}")
        if mode is None and picture.mode not in _CHANNELS:
            raise DataError(
                f"{where}: the picture has mode {picture.mode}, which is none of {known}; mode: RGB converts all"
            )
        return picture if mode in (None, picture.mode) else picture.convert(mode)

    def _place(self, number: int, entry: Entry) -> str:
        path = None if entry is None or entry["bytes"] is not None else entry["path"]
        return path or self.place(number)


def _difference(where: str, pixels: Pixels, other: str, first: Pixels) -> str:
    """Returns why the picture ``where``, uint8 ``[C, H, W]``, does not fit beside the ``first``, in ``other``."""
    if pixels.shape[0] != first.shape[0]:
        modes = {channels: mode for mode, channels in _CHANNELS.items()}
        own, others = modes[pixels.shape[0]], modes[first.shape[0]]
        return f"{where}: the picture has mode {own}, and {other} has {others}; mode: RGB converts all"
    own, others = (f"{one.shape[2]} x {one.shape[1]}" for one in (pixels, first))
    return f"{where}: the picture has {own} pixels, and {other} has {others}; size scales and cuts all"


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
