"""Folders of data files that `datasets` reads: arguments that keep their cells, and the files that it passes over."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arctic_training.data.formats.remarks import remark
from arctic_training.data.sources.extensions import SOURCE_BY_EXTENSION, extension

_AS_WRITTEN = {"keep_default_na": False, "na_values": [""]}
"""Arguments for CSV files: only an empty cell is missing, and NA, null and None are text."""
_DATA = {*SOURCE_BY_EXTENSION} - {".txt"}
"""Extensions of files that are hardly anything but data."""
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json")


def arguments_of(where: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments with which `datasets.load_dataset` reads a local folder, ``kwargs`` among them.

    Remarks on files of the folder that it does not read: of another format than most, or of no split.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig

    builder = datasets.load_dataset_builder(where, **kwargs)
    if not {"data_files", "data_dir"} & {*kwargs}:
        _remark_on_others(
            Path(where), [str(file) for files in (builder.config.data_files or {}).values() for file in files]
        )
    return {**_AS_WRITTEN, **kwargs} if isinstance(builder.config, CsvConfig) else dict(kwargs)


def _remark_on_others(folder: Path, read: Iterable[str]) -> None:
    known = {Path(file).resolve() for file in read}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        is_data = extension(file) in _DATA and file.name not in _DESCRIPTIONS and file.is_file()
        if is_data and file.resolve() not in known and not any(part.startswith((".", "_")) for part in parts):
            remark("has files that nothing reads, as they are of another format or of no split", str(Path(*parts)))
