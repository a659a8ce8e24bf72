"""Sources of local files: their rows, and the errors for files that cannot be read."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.factories.sft import SFTDataConfig
from arctic_training.data.formats.remarks import collect
from arctic_training.data.sources import json_documents
from arctic_training.data.sources.arrow_rows import RowReader
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup

ROWS = [{"a": 1, "b": "x", "c": {"d": None, "e": [1]}}, {"a": 2, "b": None, "f": 0.5}, {"a": 3, "c": {"g": {}}}]


def source(path: Path | str, **section: Any) -> DataSource:
    """The source that a recipe's bare path, or section with that path, gives."""
    config = SFTDataConfig(sources=[{"name_or_path": str(path), **section}], max_length=8).sources[0]
    assert isinstance(config, DataSourceConfig)
    return lookup("data_source", config.type)(None, config)  # type: ignore[call-arg, return-value]


def rows(path: Path | str, **section: Any) -> list[dict[str, Any]]:
    """The rows, without the keys that are None."""
    read = source(path, **section)("train")
    values = RowReader(read.features)(read.with_format("arrow")[:])
    return [{key: value for key, value in row.items() if value is not None} for row in values]


def refusal(path: Path | str, **section: Any) -> str:
    with pytest.raises(DataError) as refused:
        source(path, **section)("train")
    return str(refused.value)


EXPECTED = [{key: value for key, value in row.items() if value is not None} for row in ROWS]


def test_json_lines_lose_and_add_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + "".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8")
    assert rows(file) == EXPECTED


@pytest.mark.parametrize("as_list", [True, False])
def test_json(tmp_path: Path, as_list: bool) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS, indent=1) if as_list else "\n".join(map(json.dumps, ROWS)))
    assert rows(file) == EXPECTED


def zstandard_frames(data: bytes) -> bytes:
    return b"".join(zstandard.compress(part) for part in (data[:20], data[20:]))


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard_frames}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    for name, text, expected in [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), EXPECTED),
        ("a.json", json.dumps(ROWS, indent=1), EXPECTED),
        ("a.tsv", "a\tb\n1\t02\n", [{"a": "1", "b": "02"}]),
        ("a.v2.txt", "one\ntwo\n", [{"text": "one"}, {"text": "two"}]),
    ]:
        file = tmp_path / (name + ending)
        file.write_bytes(PACKED[ending](text.encode()))
        assert rows(file) == expected
    file = tmp_path / f"b.jsonl{ending}"
    file.write_bytes(PACKED[ending](b'{"a": 1}\n{"a": }\n'))
    assert refusal(file) == f"{file}:2: not JSON (Expecting value at column 7)"
    file.write_bytes(PACKED[ending](b'{"a": 1}\n' * 9)[:-7])
    assert refusal(file).startswith(f"{file}: the compressed file is damaged (")


def test_a_compressed_file_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert rows(tmp_path / "rows.jsonl") == [{"a": 1}]


def test_rows_of_several_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    texts = [json.dumps(row, indent=2) for row in ROWS]
    file.write_text("\n".join(texts))
    assert rows(file) == EXPECTED
    assert source(file).place(2) == f"{file}:{1 + sum(len(text.splitlines()) for text in texts[:2])}"
    chat = {"tools": [{"name": "f"}], "messages": [{"role": "user", "content": "a"}]}
    file.write_text(json.dumps(chat, indent=2))
    assert rows(file) == [chat]


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_below_a_field(tmp_path: Path, indent: int | None) -> None:
    file = tmp_path / "rows.json"
    for value, field, count in [({"version": 1, "data": ROWS}, "data", 3), ({"a": {"rows": ROWS[:2]}}, "a.rows", 2)]:
        file.write_text(json.dumps(value, indent=indent))
        assert rows(file, field=field) == EXPECTED[:count]
        keys = ", ".join(value)
        hint = f"lists of rows under {field} ({count} rows); name one: field: {field}"
        assert refusal(file) == f"{file}: one mapping with the keys {keys}, and {hint}"
        assert refusal(file, field="b") == f"{file}: there is no 'b', which field names; there is {keys}"
    assert refusal(file, field="a").endswith("a is dict; expected a list of rows")
    file.write_text("\n".join(map(json.dumps, ROWS)))
    assert "not one mapping" in refusal(file, field="a")


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_json_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(json_documents, "_BLOCK", piece)
    values: list[Any] = [{"a": "äöü€𝄞" * 30, "b": [1.5, None]}, {"a": "x\\" * 200, "b": {"c": 12345}}, *EXPECTED]
    file = tmp_path / "rows.json"
    for text in (json.dumps(values, ensure_ascii=False, indent=1), json.dumps(values)):
        file.write_text("\ufeff" + text, encoding="utf-8")
        assert rows(file) == values
    for bad in (
        '[{"a": 1},\n {"a": }]',
        '[{"a": 1},\n{"a": "' + "b" * 200,
        '[{"a": 1}\n {}]',
        '[{"a": 1}]\n\n{}',
        "[{}, tru]",
    ):
        file.write_text(bad)
        with pytest.raises(json.JSONDecodeError) as refused:
            json.loads(bad)
        error = refused.value
        place = f"at line {error.lineno}, column {error.colno})"
        assert refusal(file).endswith(place)
    good = '[{"a": "é"},\n {"a": "'.encode()
    file.write_bytes(good + b"\xe9")
    assert refusal(file).endswith(f"not UTF-8 (byte {len(good) + 1} is 0xe9)")


def test_a_file_of_an_unknown_extension_is_told_in_short(tmp_path: Path) -> None:
    for name, ending in (("rows.foo", ".foo"), ("rows", ""), ("rows.foo.gz", ".foo")):
        (tmp_path / name).write_text("a")
        message = refusal(tmp_path / name)
        assert len(message) < 400
        assert f"files with the extension {ending} are unknown; known are .json, .jsonl, .ndjson" in message
    (tmp_path / "rows.foo").write_text('{"a": 1}\n')
    assert rows(tmp_path / "rows.foo", type="jsonl") == [{"a": 1}]


def test_numbers_of_any_size_and_kind(tmp_path: Path) -> None:
    values = [{"n": 1, "m": 2**70, "b": True, "x": [0.26005620864429313]}, {"n": "one", "m": 1, "b": False}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, values)))
    assert rows(file) == values


def test_nested_values_of_any_kind(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    numbers = [2**70, -(2**63) - 1, 1e16, 5e-324, 0.1, float("inf"), -float("inf")]
    texts = {"": "\x00\x7f\u2028", 'a"\\/': "é日\U0001f600", "b": [None, True, {}, []]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"a": numbers, "b": texts, "c": deep}))
    assert rows(file) == [{"a": numbers, "b": texts, "c": deep}]


def test_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,completion\nhi,"a\nb"\n,c\n')
    assert rows(tmp_path / "rows.csv") == [{"prompt": "hi", "completion": "a\nb"}, {"prompt": "", "completion": "c"}]
    (tmp_path / "rows.tsv").write_text("prompt\tcompletion\n1,5\t2\n")
    assert rows(tmp_path / "rows.tsv") == [{"prompt": "1,5", "completion": "2"}]


def test_csv_rows_may_be_long(tmp_path: Path) -> None:
    values = [{"a": "x" * 2_000_000, "b": "1"}, {"a": "y\n" * 100_000, "b": "2"}]
    (tmp_path / "rows.csv").write_text("a,b\n" + "".join(f'"{row["a"]}",{row["b"]}\n' for row in values))
    assert rows(tmp_path / "rows.csv") == values
    (tmp_path / "rows.csv").write_text("a,b\n" + "x" * 2**25 + ",1\n")
    assert refusal(tmp_path / "rows.csv").endswith("rows.csv: a row is longer than 16777216 bytes")


def test_csv_cells_are_text_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion,at\n1+1,02,2026-01-02\ntrue,NA,\n")
    assert rows(tmp_path / "rows.csv") == [
        {"prompt": "1+1", "completion": "02", "at": "2026-01-02"},
        {"prompt": "true", "completion": "NA", "at": ""},
    ]


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "rows.parquet")
    assert rows(tmp_path / "rows.parquet") == [{"text": "a"}, {"text": "b"}]


def test_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("a\nb\r\n\n\nc\n")
    assert [row["text"] for row in rows(file)] == ["a", "b", "c"]
    assert [row["text"] for row in rows(file, sample_by="paragraph")] == ["a\nb", "c"]
    assert [row["text"] for row in rows(file, sample_by="document")] == ["a\nb\n\n\nc\n"]


def test_patterns_and_slices(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert [row["text"] for row in rows(tmp_path / "*.txt")] == ["a1", "a2", "b1", "b2"]
    assert [row["text"] for row in rows(tmp_path / "*.txt", split="train[1:3]")] == ["a2", "b1"]
    assert [row["text"] for row in rows(tmp_path / "*.txt", split="train[75%:]")] == ["b2"]
    assert [row["text"] for row in rows(tmp_path / "*.txt", split="x[-1:]")] == ["b2"]
    for split, names in (
        ("test", {"test"}),
        ("test[1:]", {"test"}),
        ("train[1:]", set()),
        ("", set()),
        ("eval", set()),
    ):
        with collect() as remarks:
            rows(tmp_path / "*.txt", split=split)
        assert {name for _, name in remarks} == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1}\n{"a": 1 "b"}\n', "rows.jsonl:2: not JSON (Expecting ',' at column 9)"),
        (b'{"a": 1}\n\n[1]\n', "rows.jsonl:3: a row is a mapping of columns, not list"),
        (b'{"a": "\xe9"}\n', "rows.jsonl:1: not UTF-8 (byte 8 is 0xe9)"),
        (b'{"a": "\\ud800"}\n', "rows.jsonl:1: holds half of a surrogate pair, which is no text"),
        (b'{"a": "\x00"}\n', "rows.jsonl:1: not JSON (a NUL character at column 8)"),
        (b"[" * 100_000, "rows.jsonl:1: nested too deeply"),
        (
            b'[{"a": 1}]\n',
            "rows.jsonl:1: a row is a mapping of columns, not list; type: json reads a file that is one list",
        ),
        (
            b'{\n "a": 1\n}\n',
            "rows.jsonl:1: not JSON (Expecting property name enclosed in double quotes at column 2); type: json reads "
            "rows of several lines",
        ),
        (b"", "rows.jsonl: there are no rows"),
        (b"\n \n", "rows.jsonl: there are no rows"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text)
    assert refusal(file).endswith(message)


def test_other_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl").endswith("none.jsonl: no such file")
    (tmp_path / "folder.json").mkdir()
    assert "is a folder; name a file" in refusal(tmp_path / "folder.json")
    (tmp_path / "x.json").write_text('[{"a": 1},\n {"a": }]')
    assert refusal(tmp_path / "x.json").endswith("x.json: not JSON (Expecting value at line 2, column 8)")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n1,2,3\n")
    assert "x.csv: CSV parse error: Row #3: Expected 2 columns, got 3" in refusal(tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_text("no parquet")
    assert "x.parquet: " in refusal(tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_bytes(b"a\nb\xff\n")
    assert refusal(tmp_path / "x.txt").endswith("x.txt:2: not UTF-8 (byte 2 is 0xff)")
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match="is not a name, with a slice"):
        source(tmp_path / "x.txt", split="train[1]")


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("abc")
    before = source(file).fingerprint("train")
    file.write_text("abc")
    assert source(file).fingerprint("train") == before
    file.write_text("abd")
    assert source(file).fingerprint("train") != before
