"""A row on which user code fails is named, with the line of the code."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.preparation.map_rows import map_rows
from arctic_training.data.sources.huggingface import HFDataSource, HFDataSourceConfig
from arctic_training.data.sources.repeated import RepeatedStream
from arctic_training.errors.types import DataError
from tests import tiny
from tests.data import templates
from tests.data.view import make

pytestmark = pytest.mark.fault(30)


class Own(SFTDataFactory):
    """Makes its samples itself, and cannot of one row."""

    name = "own, for a test of broken rows"

    def process(self, dataset: Any) -> Any:
        return map_rows(dataset, _Own(), processes=self.config.num_proc or 1)


class _Own:
    def __call__(self, rows: list[Any], first: int) -> Any:
        lengths = [len(row["messages"][1]["content"]) for row in rows]
        return {"input_ids": [[1] * length for length in lengths], "labels": [[1] * length for length in lengths]}


def test_the_row_of_a_file_on_which_process_fails_is_named(tmp_path: Path) -> None:
    rows = tiny.chats(30)
    rows[22] = {"messages": rows[22]["messages"][:1]}
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"sources": [str(path)], "cache_dir": str(tmp_path / "cache")}
    factory = make(Own, templates.byte_level(templates.CHATML), section)
    line = r"\(test_broken_rows\.py:\d+ <listcomp>\)"
    with pytest.raises(DataError, match=rf"chats\.jsonl:23: IndexError: list index .* {line}$"):
        factory()


def test_the_row_of_a_stream_that_cannot_be_used_is_named_by_its_source_and_shown(tmp_path: Path) -> None:
    rows = tiny.chats(12)
    rows[5]["messages"][0]["role"] = "narrator"
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"sources": [{"name_or_path": str(path), "streaming": True}], "stream_buffer": 4}
    loader = make(SFTDataFactory, templates.byte_level(templates.CHATML), section, train_iters=10)().train
    with pytest.raises(DataError, match=r'chats\.jsonl: .*narrator.*; the row begins \{"messages": \[\{"role": "narr'):
        list(islice(loader, 12))
    loader.close()


def test_a_stream_that_breaks_off_is_named_with_how_far_it_was_read(tmp_path: Path) -> None:
    class Breaking:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield from ({"n": n} for n in range(3))
            raise ConnectionError("the hub is gone")

    rows = RepeatedStream(Breaking(), HFDataSource(None, HFDataSourceConfig(name_or_path="hub/chats")))
    for _ in range(3):
        next(rows)
    with pytest.raises(DataError, match=r"^hub/chats: after 3 rows read since the start: ConnectionError: the hub is"):
        next(rows)
