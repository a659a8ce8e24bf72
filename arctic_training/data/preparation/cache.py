"""Prepared rows on disk: found again as long as nothing has changed that they were made from."""

import hashlib
import inspect
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arctic_training.errors.types import DataError
from arctic_training.logging import logger

_FORMAT = 1
_NETWORKED = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cifs",
    "smb",
    "9p",
    "fuse.",
    "wekafs",
    "afs",
    "glusterfs",
    "pvfs",
)
_TABLE, _ABOUT = "rows.arrow", "about.json"


def default_folder() -> Path:
    told = os.environ.get("ARCTIC_TRAINING_CACHE")
    return Path(told).expanduser() if told else Path.home() / ".cache" / "arctic_training"


class Cache:
    """Entries are folders named by the key of what they were made from. They are written aside and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key

    def has(self, key: str) -> bool:
        """Whether there is a whole entry."""
        try:
            about = json.loads((self.path(key) / _ABOUT).read_text(encoding="utf-8"))
            return bool((self.path(key) / _TABLE).stat().st_size == about["bytes"])
        except (OSError, ValueError, KeyError):
            return False

    def write(self, key: str, table: Any, notes: list[str]) -> None:
        """Keep a `pyarrow.Table`; ``notes`` are told whenever it is read. Raises `DataError` when that cannot be."""
        import pyarrow as pa

        aside = self.folder / f"{key}.tmp-{socket.gethostname()}-{threading.get_ident()}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            with pa.OSFile(str(aside / _TABLE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            about = {"bytes": (aside / _TABLE).stat().st_size, "rows": table.num_rows, "notes": notes}
            (aside / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            if not self.has(key):
                shutil.rmtree(self.path(key), ignore_errors=True)  # what a power cut may have left
                aside.rename(self.path(key))
        except OSError as error:
            if not self.has(key):  # else another run has written the same at the same time
                raise DataError(
                    f"the data cache {self.folder} cannot be written: {error}; set data.cache_dir"
                ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def read(self, key: str) -> tuple[Any, list[str]]:
        """The table, mapped into memory rather than read, and its notes."""
        import pyarrow as pa

        try:
            about = json.loads((self.path(key) / _ABOUT).read_text(encoding="utf-8"))
            with pa.memory_map(str(self.path(key) / _TABLE)) as source:
                return pa.ipc.open_file(source).read_all(), about["notes"]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            said = " ".join(str(error).split())
            raise DataError(f"{self.path(key)} is no whole entry of the data cache ({said}); remove it") from error

    def _sweep(self) -> None:
        """Remove what runs of this machine that are gone left half written."""
        for aside in self.folder.glob(f"*.tmp-{socket.gethostname()}-*"):
            owner = aside.name.rpartition("-")[2]
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(aside, ignore_errors=True)


def shared(folder: Path) -> bool:
    """Whether ``folder`` is on a file system that other machines may see, as far as the system tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    where = str(folder.absolute())
    under = [(len(at), kind) for at, kind in mounts if (where + "/").startswith(at.rstrip("/") + "/")]
    return max(under, default=(0, ""))[1].startswith(_NETWORKED)


def key(parts: Mapping[str, Any]) -> str:
    """The name of what was made from ``parts``."""
    told = json.dumps({"format": _FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """What changes when the tokenizer would make other tokens, or other text of a chat."""
    told = [
        type(tokenizer).__qualname__,
        str(getattr(tokenizer, "chat_template", None)),
        str(tokenizer.special_tokens_map),
    ]
    if getattr(tokenizer, "is_fast", False):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # left over from the last call; no part of what it is
        backend.no_padding()
        told.append(backend.to_str())
    else:
        told += [str(sorted(tokenizer.get_vocab().items())), str(tokenizer.init_kwargs)]
    return hashlib.blake2b("\0".join(told).encode(), digest_size=16).hexdigest()


def rows_fingerprint(rows: Any) -> str:
    """What changes when the rows of a `datasets.Dataset` do."""
    digest = hashlib.blake2b(digest_size=16)
    files = [Path(file["filename"]) for file in rows.cache_files]
    if files:
        digest.update(rows._fingerprint.encode())
        for file in files:
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    else:  # made in memory: its fingerprint may be new each time, or the same for other rows
        table = (rows.flatten_indices() if rows._indices is not None else rows).data.table
        digest.update(str(table.schema).encode())
        for batch in table.to_batches():
            for column in batch.columns:
                digest.update(f"{len(column)} {column.offset}".encode())
                for buffer in column.buffers():
                    digest.update(memoryview(buffer) if buffer is not None else b"\0")
    return digest.hexdigest()


def code_fingerprint(classes: Iterable[type]) -> str:
    """What changes when the source of ``classes``, of what they descend from, or of this package's data room does."""
    files = set(Path(__file__).parents[1].rglob("*.py"))
    sources = []
    for cls in classes:
        for base in cls.__mro__:
            module = sys.modules.get(base.__module__)
            file = Path(getattr(module, "__file__", None) or "")
            if file.suffix == ".py" and "site-packages" not in file.parts:
                files.add(file)
            elif base.__module__ == "__main__":
                sources.append(_source(base))  # typed into a notebook
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    digest.update("\0".join(sorted(sources)).encode())
    return digest.hexdigest()


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        logger.warning(f"the source of {cls.__qualname__} cannot be seen: when it changes, set another data.cache_dir")
        return cls.__qualname__


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
