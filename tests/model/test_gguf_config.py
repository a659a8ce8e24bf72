"""The config of a GGUF file, whose header takes seconds to read."""

from pathlib import Path
from typing import Any

import gguf
import pytest

from arctic_training.model.pretrained import Pretrained


def write(file: Path, layers: int) -> None:
    """Writes a GGUF file of a Llama without weights."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_vocab_size(100)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def read(file: Path) -> Any:
    return Pretrained(str(file), trust_remote_code=False).config({})[0]


def test_it_is_read_once_for_all_who_ask_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, reads = tmp_path / "model.gguf", []
    start = gguf.GGUFReader.__init__
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda *args: (reads.append(1), start(*args))[1])
    write(file, layers=2)
    first = read(file)
    assert (first.num_hidden_layers, first.hidden_size) == (2, 32)
    first.num_hidden_layers = 7  # whoever gets it may change it
    assert read(file).num_hidden_layers == 2 and len(reads) == 1
    write(file, layers=3)
    assert read(file).num_hidden_layers == 3 and len(reads) == 2
