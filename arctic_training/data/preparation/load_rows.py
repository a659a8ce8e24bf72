"""Loads the rows of a source."""

from typing import TYPE_CHECKING

from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.sources.arrow_rows import stream_reader
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.display.activity import activity
from arctic_training.display.libraries import without_progress_bars
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def load_rows(source: DataSource, split: str) -> "Dataset":
    """Returns the rows of ``source`` as a `datasets.Dataset`; of a stream the first ``sample_count`` rows.

    Raises `DataError` for rows that cannot be read, and for a source without rows.
    """
    import datasets

    quiet = without_progress_bars(keep_in_terminal=True)
    with quiet, activity(f"reading {source}"), remarks.collect() as source.remarks:
        try:
            rows = source(split)
        except RowError as error:
            raise DataError(f"{source.place(error.row)}: {error.what}") from error
        if isinstance(rows, datasets.IterableDataset):
            if source.config.sample_count is None:
                raise DataError(f"{source}: a stream to evaluate on needs a sample_count")
            rows = to_dataset(map(stream_reader(rows.features), rows.take(source.config.sample_count)))
    if not isinstance(rows, datasets.Dataset):
        raise DataError(f"{source}: load returned {type(rows).__name__}; expected a datasets.Dataset")
    if not len(rows):
        raise DataError(f"{source}: there are no rows")
    return rows
