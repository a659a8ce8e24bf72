"""Libraries that a recipe needs and that are not installed: all of them at once, with their places, before anything."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from arctic_training import SFTTrainer, get_config
from arctic_training.config.get_config import require_libraries
from arctic_training.deployment.evaluate import evaluate
from arctic_training.errors.types import MissingDependencyError
from arctic_training.trainer.validation import check_run

RECIPE = """\
type: sft
model: {name_or_path: ./nowhere}
data: {sources: [missing.jsonl]}
trackers: [mlflow, tensorboard, trackio, swanlab]
wandb: {enable: true}
evaluators:
  - type: generate
    scorers: [exact_match, math]
  - {type: lm_eval, tasks: [arc_easy]}
output_dir: run
"""
TRACKERS = ("mlflow", "tensorboard", "trackio", "swanlab", "wandb")
PLACES = ("4:12: trackers.0", "4:20: trackers.1", "4:33: trackers.2", "4:42: trackers.3", "5:1: wandb")


def test_each_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    config = get_config("recipe.yaml")
    require_libraries(config)
    for library in (*TRACKERS, "math_verify", "lm_eval"):
        monkeypatch.setitem(sys.modules, library, None)
    expected = [
        *(
            f"recipe.yaml:{place}: {name} needs the library {name}: pip install 'arctic_training[{name}]'"
            for place, name in zip(PLACES, TRACKERS, strict=True)
        ),
        "recipe.yaml:8:28: evaluators.0.scorers.1: math needs the library math_verify: pip install 'math-verify'",
        "recipe.yaml:9:5: evaluators.1: lm_eval needs the library lm_eval: pip install 'arctic_training[eval]'",
    ]
    saved: Any = None
    for refuses, lines in (
        (check_run, expected),
        (SFTTrainer, expected),
        (lambda one: evaluate(one, saved, tmp_path / "out"), expected[len(TRACKERS) :]),  # which tracks nothing
    ):
        with pytest.raises(MissingDependencyError) as error:
            refuses(config)
        assert str(error.value).splitlines() == lines
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "is_needed"), [("trackers: [wandb]", True), ("wandb: {enable: false, project: mine}", False)]
)
def test_what_is_not_enabled_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, is_needed: bool
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"model: {{name_or_path: ./nowhere}}\ndata: {{sources: [a/b]}}\n{keys}\n")
    config = get_config(tmp_path / "recipe.yaml")
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = r"3:12: trackers\.0: wandb needs the library wandb: pip install 'arctic_training\[wandb\]'$"
    with pytest.raises(MissingDependencyError, match=line) if is_needed else nullcontext():
        require_libraries(config)
