"""Applies a function to the rows of a data set, batch by batch, in one process or several."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import RowError, describe_error
from arctic_training.data.preparation import workers
from arctic_training.data.sources.arrow_rows import Row, RowReader
from arctic_training.data.sources.spool import Scratch, Spool
from arctic_training.display.activity import activity
from arctic_training.distributed import environment
from arctic_training.errors.types import ArcticError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

Encode = Callable[[list[Row], int], "pa.Table | Mapping[str, Sequence[object]]"]
"""Gets up to 1,000 rows and the index of the first; returns a `pyarrow.Table` or a mapping of columns."""

_BATCH_SIZE = 1_000
_MIN_ROWS_PER_PROCESS = 5_000


def map_rows(dataset: "Dataset", encode: Encode, *, processes: int, folder: Path | None = None) -> "Dataset":
    """Returns a `datasets.Dataset` of what ``encode`` returns for the rows of ``dataset``.

    At most ``processes`` processes are used, and one for few rows; ``encode`` is pickled for several. What does not fit
    into memory goes to ``folder`` meanwhile. Raises `RowError` for a row on which ``encode`` fails.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(processes, cores, len(dataset) // _MIN_ROWS_PER_PROCESS))
    encode_table = _EncodeTable(encode, dataset.features)
    rows = dataset.with_format("arrow")
    with _tokenizer_threads(use=count == 1), nullcontext() if count == 1 else workers.mapping():
        if count == 1:
            return _map_in_process(rows, encode_table, folder)
        scratch = Scratch(folder)
        encode_table.remarks_folder = scratch.path
        encoded = rows.map(
            encode_table,
            batched=True,
            with_indices=True,
            batch_size=_BATCH_SIZE,
            remove_columns=dataset.column_names,
            num_proc=count,
            cache_file_name=str(scratch.path / "rows.arrow"),
            load_from_cache_file=False,
            new_fingerprint="0" * 16,  # the cache has a key of its own; hashing the tokenizer would take its time
        ).with_format(None)
        remarks.read(scratch.path)
    encoded._scratch = scratch  # lives as long as what is mapped into memory from it
    return encoded


def _map_in_process(rows: "Dataset", encode_table: "_EncodeTable", folder: Path | None) -> "Dataset":
    import pyarrow as pa

    spool = Spool(folder)
    with activity("encoding rows", len(rows)) as one:
        for one.done in range(0, len(rows), _BATCH_SIZE):
            encoded = encode_table(rows[one.done : one.done + _BATCH_SIZE], [one.done])
            spool.add(encoded if isinstance(encoded, pa.Table) else pa.table(dict(encoded)))
    return spool.dataset()


class _EncodeTable:
    """Reads an Arrow table as rows and encodes them; finds the row on which user code fails."""

    def __init__(self, encode: Encode, features: "Features") -> None:
        self.encode, self.features = encode, features
        self.remarks_folder: Path | None = None
        """Where a worker process writes its remarks; None in the process itself."""
        self._read: RowReader | None = None

    def __call__(self, table: "pa.Table", indices: list[int]) -> "pa.Table | Mapping[str, Sequence[object]]":
        if self._read is None:  # created where it is used: it cannot be pickled
            self._read = RowReader(self.features)
        rows, first = self._read(table), indices[0]
        try:
            with remarks.collect() as collected:
                encoded = self.encode(rows, first)
            if self.remarks_folder is None:
                remarks.repeat(collected)
            else:
                remarks.write(collected, self.remarks_folder)
            return encoded
        except ArcticError:
            raise
        except Exception:  # from code that does not know which row it was
            for number, row in enumerate(rows, first):
                try:
                    self.encode([row], number)
                except Exception as error:
                    raise RowError(number, describe_error(error)) from error
            raise


@contextmanager
def _tokenizer_threads(*, use: bool) -> Iterator[None]:
    """Sets whether the tokenizer uses all cores inside; afterwards it uses one, or it would warn of every later fork.

    A value of TOKENIZERS_PARALLELISM in the user's environment stays.
    """
    is_set = "TOKENIZERS_PARALLELISM" in os.environ
    if not is_set:
        environment.set_env("TOKENIZERS_PARALLELISM", "true" if use else "false")
    try:
        yield
    finally:
        if not is_set:
            environment.set_env("TOKENIZERS_PARALLELISM", "false")
