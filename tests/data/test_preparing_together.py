"""Two ranks: one prepares the data, the other waits, and both read the same."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.distributed import process_group
from arctic_training.errors.types import DataError
from tests import processes
from tests.data import templates
from tests.data.view import make


class Slow(SFTDataFactory):
    name = "slow, for a test"

    def process(self, dataset: Any) -> Any:
        Path(f"{self.config.cache_dir}-{process_group.rank()}").touch()
        time.sleep(1)
        return super().process(dataset)


def read(rows: str, cache: str, kind: str) -> list[list[str]]:
    process_group.init_process_group()
    tokenizer = templates.byte_level(templates.CHATML)
    section = {"sources": [rows], "cache_dir": cache, "cache_fs_type": kind}
    rank, world = process_group.rank(), process_group.world_size()
    try:
        loader = make(Slow, tokenizer, section, rank=rank, world=world, micro=2)().train
    except (DataError, RuntimeError) as error:
        return [[type(error).__name__, str(error)]]
    return [[tokenizer.decode(row[row != -100]) for row in batch["labels"]] for batch in loader]


@pytest.mark.parametrize("kind", ["auto", "local", "shared"])
def test_one_prepares_and_both_read(tmp_path: Path, kind: str) -> None:
    chats = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{n}"}]} for n in range(9)
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    ranks = processes.share(read, 2, str(rows), str(tmp_path / "cache"), kind)
    assert sorted(os.listdir(tmp_path)) == ["cache", "cache-0", "rows.jsonl"]
    assert len(ranks[0]) == len(ranks[1]) == 3
    rows_read = [row for batches in ranks for batch in batches for row in batch if row]
    assert sorted(rows_read) == [f"a{n}<|im_end|>" for n in range(9)]


def test_when_one_fails_the_other_does(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": 1}')
    first, second = processes.share(read, 2, str(tmp_path / "rows.jsonl"), str(tmp_path / "cache"), "auto")
    assert first[0][0] == "DataError"
    assert "rows.jsonl:1: a chat is a list of messages, not 1" in first[0][1]
    assert second == [["RuntimeError", "the first process failed; its own message says why"]]
