"""Writes metrics as JSON lines to a file."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.metrics import merge_metrics
from arctic_training.tracker.records import METRICS
from arctic_training.tracker.tracker import Tracker


class JsonlConfig(ComponentConfig):
    """Options of the tracker `jsonl`."""

    path: Path | None = None
    """The file; ``metrics.jsonl`` in the run folder by default."""


class JsonlTracker(Tracker[JsonlConfig]):
    """Appends a line for each record: the step, the time in seconds since 1970, the values."""

    name = "jsonl"
    _file: IO[str] | None = None

    def files(self, run_dir: Path) -> list[Path]:
        return [self.config.path or run_dir / METRICS]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        (path,) = self.files(run_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by finish
        if _ends_within_line(path):  # of a run that was killed: what is appended must not become part of it
            self._file.write("\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._file is not None:
            self._file.write(json.dumps(merge_metrics({"step": step, "time": round(time.time(), 3)}, values)) + "\n")

    def finish(self, failed: bool) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _ends_within_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
