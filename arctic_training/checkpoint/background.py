"""Saves that are written beside training: what is saved is copied first, and a thread of each rank writes the copy."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arctic_training.checkpoint import folder as disk
from arctic_training.distributed.heartbeat import record_heartbeat


@dataclass(frozen=True)
class Staged:
    """The part of a checkpoint that a rank writes, in host memory: later steps do not change it."""

    write: Callable[[], Sequence[str]]
    """Writes the files of this rank into the folder, and returns their paths in it. It is called in a thread, beside
    training: it must not use the other ranks, the models or a GPU. Raises OSError."""
    entries: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the manifest; those of rank 0 count."""


class BackgroundSave:
    """A checkpoint that a thread of this rank is writing into a temporary folder."""

    def __init__(self, step: int, folder: Path, staged: Staged, entries: Mapping[str, Any]) -> None:
        """Begins to write. ``entries`` are all of the manifest but what is known of the files."""
        self.step, self.folder, self.entries = step, folder, entries
        self._staged: Staged | None = staged
        self._hashes: disk.FileHashes = {}
        self._error: Exception | None = None
        # a run that ends waits for it, and one that is killed does not
        self._thread = threading.Thread(target=self._write, name=f"save of step {step}", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Returns whether this rank has written its part, or failed to."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Waits until this rank has written its part, or failed to."""
        while self._thread.is_alive():
            self._thread.join(1.0)
            record_heartbeat("save")

    def result(self) -> disk.FileHashes:
        """Waits, and returns sizes and hashes of the files of this rank. Raises OSError, or what the writer raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._hashes

    def _write(self) -> None:
        staged, self._staged = self._staged, None
        assert staged is not None
        try:
            names = staged.write()
            del staged  # the copy is freed before the files are read again
            self._hashes = disk.fsync_and_hash(self.folder, names)
        except Exception as error:  # raised in the training thread
            self._error = error
