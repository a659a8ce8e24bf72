"""Checks the first rows of local files, as they are encoded by a run."""

from collections.abc import Sequence
from itertools import islice

from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.prepare import encode_rows
from arctic_training.data.preparation.sample_factory import SampleFactory
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.files import FileSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.split import parse
from arctic_training.data.sources.transformed import transform_rows
from arctic_training.display.libraries import without_progress_bars
from arctic_training.errors.types import DataError

FIRST_ROWS = 100
"""Rows of each source that are encoded."""


def check_first_rows(factory: SampleFactory, sources: Sequence[DataSource]) -> None:
    """Encodes the first rows of those ``sources`` that read local files row by row, and writes nothing.

    A source of which the run may leave out its first rows is passed over. Raises `DataError`, with the place of the
    row, where the run would.
    """
    for source in sources:
        if not isinstance(source, FileSource) or _may_leave_out(source) or type(source).rows is FileSource.rows:
            continue
        with without_progress_bars(), remarks.collect():
            rows = to_dataset(islice(source.rows(source.files()[0]), FIRST_ROWS))
            if not len(rows):
                continue
            try:
                encode_rows(factory, source, transform_rows(rows, source.transforms, None))
            except RowError as error:
                raise DataError(f"{source.place(error.row)}: {error.what}") from error
            except DataError as error:
                raise DataError(f"{source}: {error}") from error


def _may_leave_out(source: FileSource) -> bool:
    config = source.config
    amounts = (config.sample_ratio, config.sample_count, config.weight)
    return any(amount is not None for amount in amounts) or parse(config.split)[1:] != (None, None)
