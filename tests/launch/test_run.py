"""A recipe on disk is trained by the command in two processes, and leaves its run folder and nothing else."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import execute, shared_memory

NUMBERED = """
import os
with open(os.environ["PIDS"], "a") as pids:
    pids.write(f"{os.getpid()}\\n")
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, tiny_chats: Path) -> Path:
    recipe: dict[str, Any] = {
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "max_length": 256, "num_proc": 1},
        "micro_batch_size": 4,
        "train_iters": 2,
        "optimizer": {"lr": "${env:RATE}"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "train.py").write_text(NUMBERED)
    return tmp_path


def test_data_are_prepared_and_then_two_processes_train(folder: Path) -> None:
    variables = {"RATE": "0.000123", "ARCTIC_TRAINING_CACHE": str(folder / "cache"), "PIDS": os.devnull}
    ended = execute(folder, "process-data", "recipe.yaml", **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "the data of the run are prepared"
    assert any((folder / "cache").rglob("*.arrow"))
    assert not (folder / "runs").exists()
    pids = folder.parent / "pids"
    words = ["recipe.yaml", "data.fail_on_missing_cache=true", "--num_gpus", "2"]
    ended = execute(folder, *words, new_interpreter=True, **variables | {"PIDS": str(pids)})
    assert ended.returncode == 0, ended.stderr
    run = folder / "runs" / "recipe"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["optimizer"]["learning_rate"] == "${env:RATE}"
    assert resolved["data"]["fail_on_missing_cache"] is True
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert sorted(os.listdir(folder)) == ["cache", "recipe.yaml", "runs", "train.py"]
    numbers = pids.read_text().split()
    assert len(numbers) == 3 and not shared_memory(numbers)
    assert "0.000123" not in (run / "recipe.yaml").read_text()
