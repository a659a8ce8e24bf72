"""Repeats the rows of a stream, from any position."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arctic_training.data.formats.row_error import RowError, describe_error
from arctic_training.data.sources.arrow_rows import stream_reader
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset


class RepeatedStream:
    """Repeats the rows of one source. Its position is that of the next row."""

    def __init__(self, rows: "IterableDataset", source: DataSource) -> None:
        """``rows`` is a `datasets.IterableDataset`."""
        self.rows, self.source = rows, source
        self._to_row = stream_reader(getattr(rows, "features", None))
        self._beginning = copy.deepcopy(rows.state_dict())
        self._start = self._beginning
        """The start of an iteration that is not yet running; `datasets` does not give it."""
        self._running: Iterator[dict[str, Any]] | None = None
        self._read = 0
        self.rounds = 0
        """How often the end was reached since the start of the run."""

    def __next__(self) -> dict[str, Any]:
        """Returns the next row. Raises `DataError` for one that cannot be read, and for an empty source."""
        for _ in range(2):
            if self._running is None:
                self.rows.load_state_dict(copy.deepcopy(self._start))
                self._running = iter(self.rows)
            try:
                for row in map(self._to_row, self._running):
                    self._read += 1
                    return row
            except Exception as error:
                why = str(error) if isinstance(error, RowError) else describe_error(error)
                raise DataError(f"{self.source}: after {self._read} rows read since the start: {why}") from error
            self.load_state_dict(self._beginning)
            self.rounds += 1
        raise DataError(f"{self.source}: there are no rows")

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the `datasets.IterableDataset` from which the next row is read."""
        return copy.deepcopy(self._start if self._running is None else self.rows.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._start, self._running = state, None
