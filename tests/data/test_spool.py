"""Rows that do not fit into memory go to disk, and are the same."""

import gzip
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.preparation import map_rows
from arctic_training.data.preparation.cache import Cache
from arctic_training.data.sources import json_columns, spool
from arctic_training.data.sources.arrow_rows import RowReader
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.spool import Spool, take
from arctic_training.errors.types import DataError
from tests.data import templates
from tests.data.test_file_source import rows
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)


def values(dataset: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.with_format(None).to_list()
    return rows


@pytest.mark.parametrize("limit", [0, 40, 2**20])
def test_tables_in_their_order_whatever_their_columns(tmp_path: Path, limit: int) -> None:
    tables = [pa.table({"a": [1, 2]}), pa.table({"a": [3]}), pa.table({"b": ["x"], "a": [4]}), pa.table({"a": [5.5]})]
    held = Spool(tmp_path, limit)
    for table in tables:
        held.add(table)
    dataset = held.dataset()
    assert values(dataset) == pa.concat_tables(tables, promote_options="permissive").to_pylist()
    assert bool(list(tmp_path.iterdir())) == (limit < 50)
    assert values(pickle.loads(pickle.dumps(dataset.select([2, 3, 4])))) == values(dataset)[2:]
    assert values(dataset.with_format("arrow")) == values(dataset)
    del held, dataset
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/cache cannot be written: "):
        Spool(tmp_path / "file" / "cache", 0).add(pa.table({"a": [1]}))


def test_rows_are_taken_in_stretches(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(5000))})
    chosen = np.flatnonzero(np.arange(5000) % 7)
    for limit in (0, 2**20):
        assert take(table, chosen, Spool(tmp_path, limit)).column("a").to_pylist() == chosen.tolist()


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_columns_that_change_their_kind(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(json_columns, "_ROWS", at_once)
    rows: list[dict[str, Any]] = [
        {"a": 1, "n": None, "t": "x"},
        {"a": 2.5, "late": [1]},
        {"b": True, "t": "y"},
        {"a": "1", "b": False},
    ]
    for limit in (0, 2**20):
        monkeypatch.setattr(spool, "IN_MEMORY", limit)
        dataset = to_dataset(iter(rows))
        names = {name: getattr(feature, "dtype", "json") for name, feature in dataset.features.items()}
        assert {name: kind for name, kind in names.items() if name in "nbt"} == {
            "n": "string",
            "t": "string",
            "b": "bool",
        }
        reader = RowReader(dataset.features)
        read = reader(dataset.with_format("arrow")[:])
        assert [{name: row[name] for name in ("a", "n", "t", "late", "b")} for row in read] == [
            {name: row.get(name) for name in ("a", "n", "t", "late", "b")} for row in rows
        ]


def test_files_are_read_alike_by_way_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("q,w\n" + "".join(f"{n},0{n}\n" for n in range(2000)))
    (tmp_path / "b.csv").write_text("q\nlast\n")
    (tmp_path / "none.csv").write_text("q,w\n")
    parquet.write_table(pa.table({"a": [{"b": [n]} for n in range(2500)]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n\n\nb\r\nc\n\n \n"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": [n] * (n % 3), "s": "x"}) + "\n" for n in range(2500)))
    expected, actual = (
        (
            rows(tmp_path / "[ab].csv"),
            rows(tmp_path / "*.csv", split="train[1998:]"),
            rows(tmp_path / "a.parquet"),
            rows(tmp_path / "a.txt.gz", sample_by="paragraph"),
            rows(tmp_path / "a.jsonl"),
        )
        for limit in (2**30, 0)
        if monkeypatch.setattr(spool, "IN_MEMORY", limit) is None
    )
    assert actual == expected
    assert expected[0][-2:] == [{"q": "1999", "w": "01999"}, {"q": "last"}]
    assert expected[3] == [{"text": "a"}, {"text": "b\nc"}]


@pytest.mark.parametrize("processes", [1, 2])
def test_preparing_by_way_of_the_disk_leaves_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    chats = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{n}"}] for n in range(40)]
    chats[7] = chats[7][:1]  # which has no target
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    section = {"sources": [{"name_or_path": str(path), "split": "train[2:]"}], "num_proc": processes}
    monkeypatch.setattr(map_rows, "_BATCH_SIZE", 5)
    expected = make(SFTDataFactory, TOKENIZER, {**section, "cache_dir": str(tmp_path / "a")})().train.dataset
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    monkeypatch.setattr(map_rows, "_MIN_ROWS_PER_PROCESS", 10)
    samples = make(SFTDataFactory, TOKENIZER, {**section, "cache_dir": str(tmp_path / "b")})().train.dataset
    assert len(samples) == len(expected) == 37
    for n in range(37):
        assert all(np.array_equal(samples[n][name], expected[n][name]) for name in ("input_ids", "labels"))
    (entry,) = (tmp_path / "b").iterdir()
    assert Cache(tmp_path / "b").has(entry.name)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 2**17)
    for module, name in ((map_rows, "_BATCH_SIZE"), (json_columns, "_ROWS"), (spool, "_BATCH_SIZE")):
        monkeypatch.setattr(module, name, 50)
    before = pa.default_memory_pool()
    peaks, sizes = [], []
    try:
        for count in (50, 200, 1600):  # the first time libraries are imported
            path = tmp_path / f"{count}.jsonl"
            chat = [{"role": "user", "content": "what " * 20}, {"role": "assistant", "content": "yes " * 80}]
            path.write_text((json.dumps({"messages": chat}) + "\n") * count)
            pool = pa.proxy_memory_pool(before)
            pa.set_memory_pool(pool)
            tracemalloc.start()
            section = {"sources": [str(path)], "cache_dir": str(tmp_path / "cache"), "seed": len(peaks), "num_proc": 1}
            samples = make(SFTDataFactory, TOKENIZER, section)().train.dataset
            peaks.append(np.array([tracemalloc.get_traced_memory()[1], pool.max_memory()]))
            tracemalloc.stop()
            sizes.append(samples.table.nbytes)
            assert len(samples) == count
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert sizes[2] > 7 * sizes[1]
    assert (peaks[2] - peaks[1]).max() < sizes[2] / 20, (peaks, sizes)


def test_numbers_of_arrays_and_tensors_inside_a_row_stay_numbers() -> None:
    """They would be read as mappings, as what is no text and no number is."""
    message = {"role": np.str_("user"), "train": np.bool_(False), "weight": np.float32(0.5)}
    row = {"messages": np.array([message], dtype=object), "ids": [np.int64(3), torch.tensor(4)], "one": np.arange(2)}
    more: list[dict[str, Any]] = [{"messages": [], "ids": np.array([[1, 2]]), "one": torch.ones(1)}, {"one": b"x"}]
    dataset = to_dataset([row, *more])
    # CUT{"messages": [], "ids": np.array([[1, 2]]), "one": torch.ones(1)}, {"one": b"x"}])
    rows = RowReader(dataset.features)(dataset.data.table)
    assert rows[0] == {"messages": [{"role": "user", "train": False, "weight": 0.5}], "ids": [3, 4], "one": [0, 1]}
    assert rows[1] == {"messages": [], "ids": [[1, 2]], "one": [1.0]}
    assert rows[2]["one"] == {"bytes": "b'x'"}
