"""Worker processes: the folder of their sockets, for any length of TMPDIR, and their signals."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch.distributed as dist

from arctic_training.data.batching.loader import IndexedLoader, without_targets
from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.data.preparation import workers
from arctic_training.data.preparation.map_rows import map_rows
from arctic_training.errors.types import DataError
from tests.data.test_loader import ROWS, loader, numbers


def doubled(rows: Any, first: int) -> dict[str, list[int]]:
    return {"made": [2 * row["n"] for row in rows]}


def folder_of(length: int, folder: Path) -> Path:
    """One below ``folder`` whose path has so many bytes, or more where that one's has."""
    while (missing := length - len(os.fsencode(folder)) - 1) > 0:
        folder = folder / ("d" * min(missing, 200))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def hears(rows: Any, first: int) -> dict[str, list[bool]]:
    return {"made": [signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL] * len(rows)}


def test_a_pool_ends_though_its_parent_hears_what_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that outlived SIGTERM would wait for a lock that nobody gives back, and its parent for it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        rows = datasets.Dataset.from_dict({"n": list(range(10_000))})
        assert set(map_rows(rows, hears, processes=2)["made"][:]) == {False}
    finally:
        signal.signal(signal.SIGTERM, before)


def collect(rows: list[dict[str, Any]], first: int) -> dict[str, list[int]]:
    gc.collect()
    return {"n": [row["n"] for row in rows]}


@pytest.fixture
def abandoned_process_group() -> Iterator[None]:
    """Leaves a process group, whose destructor joins threads, in a cycle that only the garbage collector finds."""
    gc.disable()
    cycle: list[object] = [dist.ProcessGroupGloo(dist.HashStore(), 0, 1)]
    cycle.append(cycle)
    del cycle
    yield
    gc.enable()


@pytest.mark.usefixtures("abandoned_process_group")
def test_a_pool_does_not_destroy_what_an_earlier_run_left() -> None:
    rows = datasets.Dataset.from_dict({"n": list(range(12_000))})
    assert map_rows(rows, collect, processes=2)["n"][:] == rows["n"][:]


@pytest.mark.usefixtures("abandoned_process_group")
def test_workers_do_not_destroy_what_an_earlier_run_left() -> None:
    def collate_after_collection(samples: list[Any]) -> list[Any]:
        gc.collect()
        return samples

    order = GlobalOrder(len(ROWS), 2, 0, 1, seed=5)
    batches = IndexedLoader(ROWS, order, collate_after_collection, make_padding_sample=without_targets, workers=2)
    batches.seek(0, 0)
    assert len(list(batches)) == 6
    batches.close()


@pytest.mark.fault(24)
@pytest.mark.parametrize("length", [60, 75, 82, 90, 104, 600])
def test_sockets_find_a_folder_below_any_path(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        folder = folder_of(length, Path(short))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        rows = datasets.Dataset.from_dict({"n": list(range(10_000))})
        mapped = map_rows(rows, doubled, processes=2)
        assert mapped["made"][:] == list(range(0, 20_000, 2))
        reader = loader(workers=2)
        assert sorted(number for batch in numbers(reader) for number in batch) == list(range(len(ROWS)))
        reader.close()
        del mapped
        with workers.socket_folder():
            mine = Path(workers.multiprocessing.current_process()._config["tempdir"])  # type: ignore[attr-defined]
        assert mine.parent == (folder if length <= 60 else Path("/tmp"))
        assert set(folder.iterdir()) <= {mine}


def test_a_folder_that_cannot_be_made_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{workers._NAME}{os.getpid()}"
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(DataError) as error, workers.socket_folder():
        pass
    assert str(error.value) == (
        f"the folder /nowhere/{name}, for the sockets of worker processes, cannot be created: No such file or"
        f" directory; set TMPDIR to a writable folder of at most {84 - len(name)} bytes, or data.num_proc: 1 and"
        " data.dl_num_workers: 0"
    )
