"""Writes generated problems to files: the same bytes whatever the number of processes."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Literal, TextIO

from arctic_training.checkpoint.folder import umask
from arctic_training.data.preparation.workers import without_garbage
from arctic_training.data.sources.generator import GeneratorSource
from arctic_training.display.activity import activity
from arctic_training.distributed.signals import set_parent_death_signal
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError
from arctic_training.symbolic.instances import CHUNK, Counts, Instance
from arctic_training.symbolic.statistics import InstanceStatistics

STATISTICS = "statistics.json"
"""The file of the statistics, beside the files of instances."""
TEXT_SEPARATOR = " # "
"""Separator of problem and answer in a text file."""
FileFormat = Literal["jsonl", "txt"]
_CHUNKS_PER_PROCESS = 2
"""Chunks that each process generates between two looks at whether there are enough."""

Generated = tuple[str, GeneratorSource]
"""A split, and the source whose instances of it are written."""
_job: Generated
"""The job of a worker process; set in the worker alone."""


def write_instances(
    sets: Mapping[str, Generated], folder: Path, *, file_format: FileFormat, processes: int
) -> dict[str, dict[str, object]]:
    """Writes a file ``<name>.jsonl``, or ``<name>.txt``, for each of ``sets``, and `STATISTICS`, which it returns.

    ``folder`` must not exist: it appears when everything is written. Raises `DataError`.
    """
    if folder.exists():
        raise DataError(f"{folder} exists, and is not overwritten; give another name, or remove it")
    aside: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        statistics: dict[str, dict[str, object]] = {}
        for name, one in sets.items():
            statistics[name] = _write_set(one, aside / f"{name}.{file_format}", processes)
        with (aside / STATISTICS).open("w", encoding="utf-8") as file:
            file.write(json.dumps(statistics, indent=2, ensure_ascii=False) + "\n")
            _flush(file)
        aside.chmod(0o777 & ~umask())  # a temporary folder is private
        aside.rename(folder)
        return statistics
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _write_set(generated: Generated, path: Path, processes: int) -> dict[str, object]:
    """Writes the instances of a source, and returns their statistics."""
    split, source = generated
    counts, statistics = Counts(), InstanceStatistics()
    to_line = _json_line if path.suffix == ".jsonl" else _text_line
    progress = activity(f"generating {path.stem}", source.config.count)
    with path.open("w", encoding="utf-8", newline="\n") as file, progress as one:
        with closing(_batches(generated, processes)) as batches:
            for instance in source.instances(batches, split, counts):
                statistics.add(instance)
                file.write(to_line(instance))
                one.done = counts.instances
        _flush(file)
    section = source.config.model_dump(mode="json", include={"task", "count", "seed", "held_out"})
    return {"source": {**section, "split": split}, **asdict(counts), **statistics.as_dict()}


def _batches(generated: Generated, processes: int) -> Generator[Sequence[Instance]]:
    """Yields the instances of a split in their order, without end, from several processes or this one.

    Raises `DataError`, also for a process that dies.
    """
    split, source = generated
    if processes == 1:
        yield from source.batches(split, measured=True)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # forked, so that the generator need not be pickled: the user's own module cannot be imported by its name
    start = (generated, os.getpid())
    with without_garbage():
        pool = ProcessPoolExecutor(processes, get_context("fork"), _start_worker, start)
        size = CHUNK * _CHUNKS_PER_PROCESS * processes
        try:
            for first in count(0, size):
                yield from pool.map(_generate_chunk, range(first, first + size, CHUNK))
        except BrokenProcessPool:
            raise DataError(f"{source}: a process that generates was ended, as when memory is full") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(generated: Generated, parent: int) -> None:
    """Has a worker end with its parent, and silently by Ctrl-C."""
    global _job
    _job = generated
    set_parent_death_signal(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _generate_chunk(first: int) -> list[Instance]:
    split, source = _job
    return source.generate(split, range(first, first + CHUNK), measured=True)


def _json_line(instance: Instance) -> str:
    return json.dumps({"problem": instance.problem, "answer": instance.answer}, ensure_ascii=False) + "\n"


def _text_line(instance: Instance) -> str:
    """Raises `DataError` for texts that could not be told apart again."""
    for text in (instance.problem, instance.answer):
        if TEXT_SEPARATOR.strip() in text or len(text.splitlines()) > 1:
            raise DataError(
                f"{short_repr(text)}: a text file has a problem and its answer in a line, parted by "
                f"{TEXT_SEPARATOR.strip()}; write jsonl"
            )
    return f"{instance.problem}{TEXT_SEPARATOR}{instance.answer}\n"


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
