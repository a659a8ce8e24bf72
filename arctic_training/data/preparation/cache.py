"""The data cache: prepared samples on disk, under a key of everything that they depend on."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.data.formats.remarks import Remarks, from_json, to_json
from arctic_training.data.preparation.workers import is_running
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_FORMAT = 1
_TABLE, _METADATA = "rows.arrow", "about.json"


def default_folder() -> Path:
    """Returns ``$ARCTIC_TRAINING_CACHE``, or the folder for caches in the user's home."""
    folder = os.environ.get("ARCTIC_TRAINING_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "arctic_training"


class Cache:
    """Entries are folders, named by their key. Each is written to a temporary folder and renamed, so it is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, key: str) -> bool:
        """Returns whether there is a complete entry."""
        try:
            metadata = json.loads((self.folder / key / _METADATA).read_text(encoding="utf-8"))
            return bool((self.folder / key / _TABLE).stat().st_size == metadata["bytes"])
        except (OSError, ValueError, KeyError):
            return False

    def write(self, key: str, table: "pa.Table", notes: list[str], counts: Remarks) -> None:
        """Writes a `pyarrow.Table`, ``notes`` for the log of every run that reads it, and what was counted of its rows.

        Raises `DataError`.
        """
        import pyarrow as pa

        temporary = self.folder / f"{key}.tmp-{socket.gethostname()}-{threading.get_ident()}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            with pa.OSFile(str(temporary / _TABLE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            metadata = {"bytes": (temporary / _TABLE).stat().st_size, "rows": table.num_rows, "notes": notes}
            metadata["counts"] = to_json(counts)
            (temporary / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")
            if not self.has(key):
                shutil.rmtree(self.folder / key, ignore_errors=True)  # an incomplete one, as after a power cut
                temporary.rename(self.folder / key)
        except OSError as error:
            if not self.has(key):  # else another run has written the same at the same time
                raise DataError(
                    f"the data cache {self.folder} cannot be written: {error}; set data.cache_dir"
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self, key: str) -> tuple["pa.Table", list[str], Remarks]:
        """Returns the table, mapped into memory, its notes and counts. Raises `DataError` for an incomplete entry."""
        import pyarrow as pa

        try:
            metadata = json.loads((self.folder / key / _METADATA).read_text(encoding="utf-8"))
            with pa.memory_map(str(self.folder / key / _TABLE)) as source:
                return pa.ipc.open_file(source).read_all(), metadata["notes"], from_json(metadata["counts"])
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            why = " ".join(str(error).split())
            raise DataError(
                f"{self.folder / key} is an incomplete entry of the data cache ({why}); remove it"
            ) from error

    def _sweep(self) -> None:
        """Removes temporary folders of this machine's processes that have ended."""
        for temporary in self.folder.glob(f"*.tmp-{socket.gethostname()}-*"):
            owner = temporary.name.rpartition("-")[2]
            if owner.isdigit() and not is_running(int(owner)):
                shutil.rmtree(temporary, ignore_errors=True)


def is_shared(folder: Path) -> bool:
    """Returns whether all machines see the same ``folder``, by a file that the main process creates in it.

    Every rank calls it.
    """
    if len(set(collectives.all_gather_object(socket.gethostname()))) == 1:
        return True
    probe = folder / f"probe.tmp-{socket.gethostname()}-{os.getpid()}"
    if process_group.is_main():
        with suppress(OSError):  # a folder that cannot be written is refused when an entry is
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
    probe = collectives.broadcast_object(probe)
    shared = all(collectives.all_gather_object(probe.exists()))
    if process_group.is_main():
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return shared


def key(parts: Mapping[str, object]) -> str:
    """Returns the key of samples that depend on ``parts``."""
    text = json.dumps({"format": _FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns a digest that changes when the tokenizer encodes a text or renders a chat differently."""
    parts = [
        type(tokenizer).__qualname__,
        str(getattr(tokenizer, "chat_template", None)),
        str(tokenizer.special_tokens_map),
    ]
    if getattr(tokenizer, "is_fast", False):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # left over from the last call
        backend.no_padding()
        parts.append(backend.to_str())
    else:
        parts += [str(sorted(tokenizer.get_vocab().items())), str(tokenizer.init_kwargs)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def rows_fingerprint(rows: "Dataset") -> str:
    """Returns a digest of the rows of a `datasets.Dataset`, and of the names of its labels."""
    digest = hashlib.blake2b(repr(rows.features).encode(), digest_size=16)
    files = [Path(file["filename"]) for file in rows.cache_files]
    if files:
        digest.update(rows._fingerprint.encode())
        for file in files:
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    else:  # in memory: its fingerprint may be new each time, or the same for other rows
        table = (rows.flatten_indices() if rows._indices is not None else rows).data.table
        digest.update(str(table.schema).encode())
        for batch in table.to_batches():
            for column in batch.columns:
                digest.update(f"{len(column)} {column.offset}".encode())
                for buffer in column.buffers():
                    digest.update(memoryview(buffer) if buffer is not None else b"\0")
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that samples depend on."""
    return {name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "transformers")}
