"""A dry run does everything once in small, with what the recipe names, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config
from arctic_training.launch.dry_run import small_values
from tests.command import execute
from tests.contract import cases


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, recipe: dict[str, Any]) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize("trainer", ["sft", "grpo", "gan"])
def test_everything_is_done_and_nothing_is_left(trainer: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"checkpoint": [{"type": "deepspeed", "save_every_n_steps": 100}], "epochs": 50}
    if trainer == "sft":
        source = {"sources": [str(tmp_path / "chats.jsonl")], "train_eval_split": [0.8, 0.2], "max_length": 400}
        more |= {
            "data": source,
            "evaluators": {"type": "generate"},
            "eval_interval": 1000,
            "scheduler": {"warmup_steps": 9},
        }
        more["callbacks"] = [{"type": "sample_generation", "prompts": ["one and"], "every": 500}]
        more["checkpoint"].append({"type": "huggingface", "save_end_of_training": True})
    write(tmp_path, {**cases.recipe(trainer, tmp_path), **more})
    (tmp_path / "runs" / "recipe").mkdir(parents=True)
    (tmp_path / "runs" / "recipe" / "metrics.jsonl").write_text("mine\n")
    before = files(tmp_path)
    done = execute(tmp_path, "recipe.yaml", "--dry-run", ARCTIC_TRAINING_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == before and sorted(one.name for one in (tmp_path / "runs").iterdir()) == ["recipe"]
    assert "deprecated" not in done.stderr
    summary = done.stdout.splitlines()[-1]
    assert summary.startswith("dry run: 2 steps, loss ")
    assert ("1 evaluation, 2 checkpoints, 2 files of samples" if trainer == "sft" else "1 checkpoint") in summary


def test_what_would_fail_fails_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = cases.recipe("sft", tmp_path)
    write(tmp_path, recipe | {"callbacks": ["breaks"]})
    (tmp_path / "train.py").write_text(BREAKS)
    done = execute(tmp_path, "recipe.yaml", "--dry-run", ARCTIC_TRAINING_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1 and "it breaks at a step" in done.stderr
    assert done.stdout.endswith("dry run: failed with exit code 1\n")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


def test_only_amounts_and_places_are_changed(tmp_path: Path) -> None:
    recipe = cases.recipe("grpo", tmp_path, train_iters=500, gradient_accumulation_steps=8, num_minibatches=4)
    recipe["data"] |= {"sources": [{"name_or_path": recipe["data"]["sources"][0], "sample_ratio": 0.5}]}
    write(tmp_path, recipe)
    path = tmp_path / "recipe.yaml"
    config = get_config(path)
    small = get_config(path, small_values(config, tmp_path / "dry"))
    assert (small.train_iters, small.gradient_accumulation_steps, small.num_minibatches) == (2, 4, 4)  # type: ignore[attr-defined]
    assert (small.num_generations, small.max_new_tokens) == (2, 6)  # type: ignore[attr-defined]
    assert small.output_dir == tmp_path / "dry" and small.data.cache_dir == tmp_path / "dry" / "cache"  # type: ignore[attr-defined]
    source = small.data.sources[0]  # type: ignore[attr-defined]
    assert (source.sample_count, source.sample_ratio, source.name_or_path) == (
        128,
        None,
        config.data.sources[0].name_or_path,
    )  # type: ignore[attr-defined]
    for key in ("model", "optimizer", "tokenizer", "seed", "type", "rewards"):
        assert getattr(small, key) == getattr(config, key)


BREAKS = """
from arctic_training import Callback


class Breaks(Callback):
    name = "breaks"

    def post_step(self, trainer):
        raise ValueError("it breaks at a step")
"""
