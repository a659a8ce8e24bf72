"""Folders of picture files: which files, in which order, and the split and the class of each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.data.sources.extensions import SOURCE_BY_EXTENSION, extension
from arctic_training.data.sources.split import EVALUATION
from arctic_training.errors.types import DataError
from arctic_training.logging import logger

if TYPE_CHECKING:
    from datasets import Dataset

_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
"""Files in which `datasets` finds columns of the pictures beside them, by their ``file_name``."""
_SAVED = {"dataset_dict.json", "state.json"}
"""Files of a folder that `datasets` has saved."""


@dataclass(frozen=True)
class PictureFolder:
    """A folder in which picture files are."""

    folder: Path
    files: Mapping[str, Sequence[Path]]
    """The pictures of each split, sorted by their paths below the folder of the split."""
    has_metadata: bool

    def splits(self, *, one_class: bool) -> "Mapping[str, Dataset]":
        """Returns the pictures of each split as a `datasets.Dataset`: the column ``image``, and ``label``, which is the
        first folder of each path. With metadata there are its columns instead. A single folder is no class, unless
        there may be ``one_class``. Raises `DataError` for metadata that cannot be read."""
        import datasets

        if self.has_metadata:
            return self._read_metadata()
        classes = {split: [self._class(split, file) for file in files] for split, files in self.files.items()}
        names = sorted({name for some in classes.values() for name in some})
        labeled = "" not in names and (len(names) > 1 or one_class)
        if "" in names and len(names) > 1:
            logger.warning(f"{self.folder}: some pictures are in no folder for a class, so that there are no labels")
        features: dict[str, Any] = {"image": datasets.Image(decode=False)}
        features |= {"label": datasets.ClassLabel(names=names)} if labeled else {}
        splits = {}
        for split, files in self.files.items():
            columns: dict[str, Any] = {"image": [str(file) for file in files]}
            columns |= {"label": classes[split]} if labeled else {}
            splits[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        return splits

    def _read_metadata(self) -> "Mapping[str, Dataset]":
        import datasets

        where = {split: os.path.join(self._root(split).relative_to(self.folder), "**") for split in self.files}
        try:
            splits: Mapping[str, Dataset] = datasets.load_dataset(
                "imagefolder", data_dir=str(self.folder), data_files=where, drop_labels=True
            )
            return splits
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{self.folder}: its metadata cannot be read: {why}") from error

    def _class(self, split: str, file: Path) -> str:
        """Returns the first folder of a path below that of its split; empty where it is in none."""
        parts = file.relative_to(self._root(split)).parts
        return parts[0] if len(parts) > 1 else ""

    def _root(self, split: str) -> Path:
        below = self.folder / split
        return below if self.files[split][0].is_relative_to(below) else self.folder


def find_pictures(name: str) -> PictureFolder | None:
    """Returns the folder ``name`` where it holds picture files; None where it holds other data or is no folder.

    Its splits are its folders, where all of them have names such as train, validation and test, and no picture is
    beside them; else there is train alone. Raises `DataError` for a folder without data, and for one that cannot be
    read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() or any((folder / one).exists() for one in _SAVED):
        return None
    known, files, others = _extensions(), list[Path](), list[Path]()
    for file in _files(folder):
        (files if file.suffix.lower() in known else others).append(file)
    if not files:
        if any(extension(file) in SOURCE_BY_EXTENSION for file in others):
            return None
        few = ", ".join(file.name for file in others[:3])
        content = f"there are {len(others)} others, such as {few}" if others else "it is empty"
        raise DataError(f"{folder}: no picture files, such as .png and .jpg; {content}")
    tops: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(folder).parts
        tops.setdefault(parts[0] if len(parts) > 1 else "", []).append(file)
    splits = tops if tops.keys() <= {"train", *EVALUATION} else {"train": files}
    return PictureFolder(folder, splits, any(file.name in _METADATA for file in others))


def _files(folder: Path) -> list[Path]:
    """Returns the files below a folder, sorted, without those that are hidden. Raises `DataError`."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}")

    paths = []
    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [one for one in folders if not one.startswith((".", "__"))]
        paths += [Path(path, one) for one in files if not one.startswith(".")]
    return sorted(paths)


def _extensions() -> set[str]:
    """Returns the extensions of the files that Pillow reads."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
