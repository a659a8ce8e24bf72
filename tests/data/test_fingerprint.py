"""The fingerprint of data changes with the content of samples and rows only."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import TensorDataset

from arctic_training.data.batching import fingerprint
from arctic_training.data.batching.chunking import concat_and_chunk, truncate
from arctic_training.data.batching.packing import best_fit
from arctic_training.data.batching.stream import StreamLoader
from arctic_training.data.preparation.samples import Samples
from arctic_training.data.sources.files import FileSourceConfig

pytestmark = pytest.mark.fault(19)

ROWS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11, 12]]


def table(rows: list[list[int]], cuts: tuple[int, ...] = (), **more: Any) -> Any:
    """Rows as a table in chunks that end at ``cuts``."""
    full = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32())), **more})
    ends = [0, *cuts, len(rows)]
    return pa.concat_tables([full.slice(start, end - start) for start, end in pairwise(ends)])


def fingerprints(dataset: Any, groups: Any = None) -> dict[str, str]:
    loader: Any = SimpleNamespace(dataset=dataset, groups=groups)
    return fingerprint.of_data(loader)


def test_it_is_that_of_the_samples_however_they_are_held() -> None:
    first = fingerprints(Samples(table(ROWS)))
    assert first == fingerprints(Samples(table(ROWS, (1, 3))))
    assert first["data.samples"].startswith("5 samples (")
    others = [
        Samples(table(ROWS[::-1])),
        Samples(table([*ROWS[:4], [11, 13]])),
        Samples(table([[1, 2], [3, 4], *ROWS[2:]])),  # the same tokens in other rows
        Samples(table(ROWS), np.array([0, 1, 2, 3])),
        Samples(table(ROWS), np.array([0, 1, 2, 4])),
        Samples(table(ROWS, labels=pa.array(ROWS, pa.list_(pa.int32())))),
        Samples(table(ROWS, name=pa.array(list("abcde")))),
        Samples(table(ROWS, name=pa.array(list("abcdf")))),
        truncate(Samples(table(ROWS)), 3),
        truncate(Samples(table(ROWS)), 2),
        concat_and_chunk(Samples(table(ROWS)), 4, np.arange(5))[0],
        concat_and_chunk(Samples(table(ROWS)), 4, np.arange(5)[::-1])[0],
    ]
    assert len({first["data.samples"], *(fingerprints(one)["data.samples"] for one in others)}) == len(others) + 1


def test_rows_of_several_samples_have_one_of_their_own() -> None:
    samples = Samples(table(ROWS))
    four, five = (fingerprints(samples, best_fit(samples.lengths(), capacity)) for capacity in (4, 5))
    assert four["data.samples"] == five["data.samples"]
    assert four["data.rows"] != five["data.rows"]


def test_tensors_are_told_by_their_content() -> None:
    points = torch.arange(12.0).view(4, 3)
    moved = points.clone()
    moved[3, 2] += 1e-6 * 11
    kinds = [{"rows": points}, {"rows": moved}, {"lines": points}, TensorDataset(points), TensorDataset(moved)]
    assert len({fingerprints(kind)["data.samples"] for kind in kinds}) == 5  # by name, content and kind
    assert fingerprints({"rows": points}) == fingerprints({"rows": points.clone()})
    assert fingerprints({"rows": points})["data.samples"].startswith("4 samples (")


def test_what_may_be_drawn_anew_is_counted_only() -> None:
    class Drawn:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(2)

    assert fingerprints(Drawn()) == fingerprints(Drawn())
    assert fingerprints(object()) == {}


def test_of_what_is_large_stretches_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_MAX_BYTES", 4096)
    monkeypatch.setattr(fingerprint, "_BLOCK", 256)
    rows = [np.random.default_rng(n).integers(0, 9, 50).tolist() for n in range(200)]
    first = fingerprints(Samples(table(rows)))
    assert first == fingerprints(Samples(table(rows, (1, 2, 90))))
    assert first != fingerprints(Samples(table([rows[0][::-1], *rows[1:]])))
    assert first != fingerprints(Samples(table([*rows[:-1], rows[-1][::-1]])))
    assert first != fingerprints(Samples(table([*rows[:100], rows[100][1:], *rows[101:]])))


def test_a_stream_is_told_by_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "moved")

    def stream(path: Path, **more: Any) -> dict[str, str]:
        loader = StreamLoader.__new__(StreamLoader)
        config = FileSourceConfig(type="jsonl", name_or_path=str(path), streaming=True, **more)
        loader.factory = SimpleNamespace(config=SimpleNamespace(sources=[config]))
        return fingerprint.of_data(loader)

    first = stream(tmp_path / "rows.jsonl")
    assert first == stream(tmp_path / "moved" / "rows.jsonl")
    assert first != stream(tmp_path / "rows.jsonl", sample_count=3)
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    assert first != stream(tmp_path / "rows.jsonl")
