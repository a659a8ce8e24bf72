"""Small data in local files are prepared by `validate`, and what an objective cannot use of them is refused."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arctic_training import get_config
from arctic_training.data.preparation.first_rows import FIRST_ROWS
from arctic_training.errors.types import DataError, InputError
from arctic_training.trainer import validation
from arctic_training.trainer.validation import check_run

CHAT = json.dumps({"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]})
MLP = {"type": "mlp", "sizes": [2, 4, 2]}
FLOW: dict[str, Any] = {"type": "flow", "objective": "flow_matching", "model": {"type": "time_mlp", "sizes": [2, 8, 2]}}
VAE: dict[str, Any] = {"type": "vae", "model": {"encoder": {**MLP, "sizes": [2, 4, 4]}, "decoder": MLP}}


@pytest.mark.parametrize(
    ("recipe", "columns", "message"),
    [
        (FLOW, {"rows": np.zeros((4, 2), np.int64)}, "data.sources: rows are torch.int64; a density needs floats"),
        (FLOW, {"points": np.zeros((4, 2), np.float32)}, "data.sources: no column rows; there are points"),
        (VAE | {"reconstruction": "bernoulli"}, {"rows": np.full((4, 2), 3.0)}, "data.sources: values from 3 to 3"),
        (
            {"type": "diffusion", "model": {"type": "time_mlp", "sizes": [1, 8, 1]}},
            {"rows": np.zeros(4, np.float32)},
            r"data.sources: rows are single numbers; expected \[rows, ...\]",
        ),
        (
            {"type": "tensor_classifier", "model": MLP},
            {"rows": np.zeros((4, 2), np.float32), "labels": np.array([0, 1, 2, 0])},
            "data.sources: expected labels from 0 to 1 for each row, or 2 floats",
        ),
    ],
)
def test_tensors_that_an_objective_cannot_use(
    recipe: dict[str, Any], columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", **columns)
    data = {"sources": [str(tmp_path / "rows.npz")]}
    config = get_config({**recipe, "data": data, "output_dir": str(tmp_path / "run")})
    with pytest.raises(InputError, match=message):
        check_run(config)


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        (["no JSON"], {}, "rows.jsonl:1: not JSON"),
        ([CHAT, '{"messages": 3}'], {}, "rows.jsonl:2: a chat is a list of messages, not 3"),
        (['{"a": 1}'], {}, "rows.jsonl: no known format has the columns a"),
        ([CHAT] * FIRST_ROWS + ["no JSON"], {}, ""),  # the others are not read
        (['{"messages": 3}', CHAT], {"sample_count": 1}, ""),  # it may not be among the samples
        (['{"messages": 3}', CHAT], {"split": "train[1:]"}, ""),
    ],
)
def test_of_large_data_the_first_rows_are_read(
    rows: list[str],
    source: dict[str, Any],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "MOST_BYTES", 4)
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    sources = {"sources": [{"name_or_path": str(tmp_path / "rows.jsonl"), **source}]}
    model = {"name_or_path": str(tiny_model)}
    config = get_config({"type": "sft", "model": model, "data": sources, "output_dir": str(tmp_path / "run")})
    with pytest.raises(DataError, match=message) if message else nullcontext():
        check_run(config)
