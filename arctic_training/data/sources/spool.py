"""Collects Arrow tables in memory, and in temporary files once they are large."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

IN_MEMORY = 64 * 2**20
"""Bytes up to which tables stay in memory."""
_BATCH_SIZE = 1_000


class Scratch:
    """A temporary folder that is removed when nothing in this process refers to it."""

    def __init__(self, folder: Path | None) -> None:
        """The new folder is in ``folder``; None: where the system has temporary files."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        owner = f".tmp-{socket.gethostname()}-{os.getpid()}"  # the cache removes what a dead process left
        self._folder = tempfile.TemporaryDirectory(prefix="rows_", suffix=owner, dir=folder, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)

    def __deepcopy__(self, memo: object) -> "Scratch":
        return self  # `datasets` copies what refers to it

    def __reduce__(self) -> tuple[type[Path], tuple[str]]:
        return Path, (str(self.path),)  # another process does not remove it


class Spool:
    """Collects tables; consecutive ones of one schema become one file."""

    def __init__(self, folder: Path | None, limit: int | None = None) -> None:
        """Files go to ``folder`` above ``limit`` bytes, by default `IN_MEMORY`."""
        self._folder, self._limit, self._bytes = folder, IN_MEMORY if limit is None else limit, 0
        self._tables: list[pa.Table] = []
        self._scratch: Scratch | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema = None
        self._files: list[str] = []

    def add(self, table: "pa.Table") -> None:
        """Adds a `pyarrow.Table`, which may have another schema than those before.

        Raises `DataError` when the folder cannot be written.
        """
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes <= self._limit:
            return
        try:
            self._scratch = self._scratch or Scratch(self._folder)
            for one in self._tables:
                self._write(one)
        except OSError as error:
            raise DataError(f"{self._folder or tempfile.gettempdir()} cannot be written: {error}") from error
        self._tables = []

    def tables(self) -> Iterator["pa.Table"]:
        """Yields the tables in order, those in files in batches; no more can be added."""
        self._close()
        yield from self._tables
        for file in self._files:
            yield from _read_file(file)

    def dataset(self, features: "Features | None" = None) -> "Dataset":
        """Returns all rows as a `datasets.Dataset`; columns that some tables lack are filled in.

        Raises `pyarrow.ArrowException` for tables that do not fit together.
        """
        import pyarrow as pa
        from datasets import Dataset, DatasetInfo
        from datasets.fingerprint import generate_random_fingerprint
        from datasets.table import MemoryMappedTable

        self._close()
        info = None if features is None else DatasetInfo(features=features)
        if self._scratch is None:
            table = pa.concat_tables(self._tables, promote_options="permissive")
            # `datasets` keeps no file of what is computed from rows in memory, and need not hash them to name it
            return Dataset(table, info=info, fingerprint=generate_random_fingerprint())
        if len(self._files) > 1:
            return self._with_one_schema().dataset(features)
        dataset = Dataset(MemoryMappedTable.from_file(self._files[0]), info=info)
        dataset._scratch = self._scratch  # exists as long as what is mapped into memory from it
        return dataset

    def _with_one_schema(self) -> "Spool":
        """Returns the same rows with one schema."""
        import pyarrow as pa

        schemas = [next(_read_file(file)).schema for file in self._files]
        empty = pa.unify_schemas(schemas, promote_options="permissive").empty_table()
        unified = Spool(self._folder, self._limit)
        for table in self.tables():
            unified.add(pa.concat_tables([empty, table], promote_options="permissive"))
        return unified

    def _write(self, table: "pa.Table") -> None:
        import pyarrow as pa

        assert self._scratch is not None
        if self._writer is None or not self._schema.equals(table.schema, check_metadata=True):
            self._close()
            self._files.append(str(self._scratch.path / f"{len(self._files)}.arrow"))
            self._writer, self._schema = pa.ipc.new_stream(self._files[-1], table.schema), table.schema
        self._writer.write_table(table)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def take(table: "pa.Table", indices: npt.NDArray[np.int64], spool: Spool) -> "pa.Table":
    """Returns the rows of a `pyarrow.Table` at ascending ``indices``, collected in ``spool``."""
    import pyarrow as pa

    for first in range(0, len(indices), _BATCH_SIZE):
        batch = indices[first : first + _BATCH_SIZE]
        part = table.slice(batch[0], batch[-1] - batch[0] + 1)
        spool.add(part.take(pa.array(batch - batch[0])))
    return spool.dataset().data.table


def _read_file(file: str) -> Iterator["pa.Table"]:
    """Yields the tables of a file, mapped into memory."""
    import pyarrow as pa

    reader = pa.ipc.open_stream(pa.memory_map(file))
    empty = True
    for batch in reader:
        empty = False
        yield pa.Table.from_batches([batch])
    if empty:
        yield reader.schema.empty_table()
