"""The data cache: changed inputs are a new entry, unchanged ones are reused, incomplete entries are ignored."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.preparation import cache
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError
from tests.data import templates
from tests.data.view import make

PLAIN = templates.byte_level(templates.CHATML)


def write(path: Path, answer: str = "a") -> str:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    path.write_text(json.dumps({"messages": chat}))
    return str(path)


def entries(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache").glob("*")}


def run(folder: Path, tokenizer: Any = PLAIN, factory: Any = SFTDataFactory, **section: Any) -> str:
    """Train on one row, and say what it was."""
    section = {"sources": [str(folder / "rows.jsonl")], "cache_dir": str(folder / "cache"), **section}
    view = {"tokenizer": section.pop("settings")} if "settings" in section else {}
    factory_ = make(factory, tokenizer, section)
    vars(factory_.trainer.config).update(view)
    return str(tokenizer.decode(factory_().train.dataset[0]["input_ids"]))


@pytest.mark.fault(34)
def test_the_same_is_found_again(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    run(tmp_path)
    before = entries(tmp_path)
    assert len(before) == 1
    # what comes after the tokens are made changes nothing of them
    for section in [{"seed": 1}, {"pack_samples": True}, {"max_length": 64}, {"num_proc": 1}, {"dl_num_workers": 1}]:
        run(tmp_path, **section)
    run(tmp_path, templates.byte_level(templates.CHATML))  # another tokenizer that does the same
    os.utime(tmp_path / "rows.jsonl", (1, 1))
    run(tmp_path)
    PLAIN(["x"], truncation=True, max_length=3, padding=True)  # a call leaves no trace that counts
    run(tmp_path)
    assert entries(tmp_path) == before


CHANGES: dict[str, dict[str, Any]] = {
    "template": {"tokenizer": templates.byte_level(templates.GEMMA)},
    "end token": {"tokenizer": templates.byte_level(templates.CHATML, eos="</s>")},
    "vocabulary": {"tokenizer": templates.metaspace(templates.CHATML)},
    "masking": {"mask_inputs": False},
    "masking of earlier answers": {"mask_history": True},
    "thoughts": {"ignore_empty_think": True},
    "template arguments": {"chat_template_kwargs": {"x": 1}},
    "split": {"sources": [{"name_or_path": "rows.jsonl", "split": "train[:1]"}]},
    "amount": {"sources": [{"name_or_path": "rows.jsonl", "sample_count": 2}]},
    "choice": {"sources": [{"name_or_path": "rows.jsonl", "sample_seed": 2}]},
    "twice": {"sources": ["rows.jsonl", "rows.jsonl"]},
    "share without targets": {"max_share_without_targets": 0.5},
    "tokenizer settings": {"settings": TokenizerConfig(type="other")},
}


@pytest.mark.fault(34)
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_samples_is_in_the_key(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl")
    run(tmp_path, sources=["rows.jsonl"])
    run(tmp_path, **{"sources": ["rows.jsonl"], **CHANGES[change]})
    assert len(entries(tmp_path)) == 2


@pytest.mark.fault(34)
def test_other_rows_are_read(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", "one")
    assert "one" in run(tmp_path)
    about = (tmp_path / "rows.jsonl").stat()
    write(tmp_path / "rows.jsonl", "two")
    os.utime(tmp_path / "rows.jsonl", ns=(about.st_atime_ns, about.st_mtime_ns))  # same size, same time
    assert "two" in run(tmp_path)


@pytest.mark.fault(34)
def test_rows_made_in_memory_are_compared_by_content(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}]}]

    class Memory(DataSource):
        name = "memory of a test"

        def load(self, config: Any, split: str) -> Any:
            from datasets import Dataset

            return Dataset.from_list(rows)

    assert "one" in run(tmp_path, sources=[{"type": Memory.name}])
    assert "one" in run(tmp_path, sources=[{"type": Memory.name}])
    assert len(entries(tmp_path)) == 1
    rows[0]["messages"][1]["content"] = "two"
    assert "two" in run(tmp_path, sources=[{"type": Memory.name}])


@pytest.mark.fault(34)
def test_other_code_makes_other_samples(tmp_path: Path) -> None:
    import importlib.util

    write(tmp_path / "rows.jsonl")

    def shouting(word: str) -> Any:
        file = tmp_path / "train.py"
        file.write_text(
            "from arctic_training.data.factories.sft import SFTDataFactory\n"
            "class Shouting(SFTDataFactory):\n"
            "    name = 'shouting'\n"
            "    def process(self, dataset):\n"
            f"        last = {{'role': 'assistant', 'content': '{word}'}}\n"
            "        say = lambda row: {'messages': [*row['messages'][:1], last]}\n"
            "        return super().process(dataset.map(say))\n"
        )
        spec = importlib.util.spec_from_file_location("arctic_test_train", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        import sys

        sys.modules[spec.name] = module
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        spec.loader.exec_module(module)
        sys.dont_write_bytecode = before
        return module.Shouting

    assert "HEY" in run(tmp_path, factory=shouting("HEY"))
    assert "OHO" in run(tmp_path, factory=shouting("OHO"))


def test_a_missing_cache_can_be_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"does not hold the prepared data .* fail_on_missing_cache is set"):
        run(tmp_path, fail_on_missing_cache=True)
    run(tmp_path)
    run(tmp_path, fail_on_missing_cache=True)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(DataError, match=r"cache cannot be written: .*; set data.cache_dir"):
        run(tmp_path)


@pytest.mark.fault(34)
def test_half_an_entry_is_none(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    run(tmp_path)
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "rows.arrow").write_bytes((entry / "rows.arrow").read_bytes()[:-8])
    assert "<|im_start|>" in run(tmp_path)
    (entry / "about.json").unlink()
    assert "<|im_start|>" in run(tmp_path)


def test_what_dead_writers_left_is_removed_and_living_ones_are_not(tmp_path: Path) -> None:
    import socket

    store = cache.Cache(tmp_path)
    host = socket.gethostname()
    dead, alive, other = (tmp_path / f"k.tmp-{name}" for name in (f"{host}-99999999", f"{host}-{os.getppid()}", "x-1"))
    for folder in (dead, alive, other):
        folder.mkdir()
    store.write("key", pa.table({"n": [1]}), ["a note"], {("dropped", "empty"): 2})
    assert {path.name for path in tmp_path.iterdir()} == {"key", alive.name, other.name}
    table, notes, counts = store.read("key")
    assert (table.to_pydict(), notes, counts) == ({"n": [1]}, ["a note"], {("dropped", "empty"): 2})


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCTIC_TRAINING_CACHE", "/x/y")
    assert cache.default_folder() == Path("/x/y")
    monkeypatch.delenv("ARCTIC_TRAINING_CACHE")
    assert cache.default_folder() == Path.home() / ".cache" / "arctic_training"
