"""Libraries that a recipe needs and that are not installed: all of them at once, with their places, before anything."""

import sys
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
trackers: [mlflow, tensorboard]
evaluators:
  - type: generate
    scorers: [exact_match, math]
  - {type: lm_eval, tasks: [arc_easy]}
output_dir: run
"""


def test_each_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    config = get_config("recipe.yaml")
    require_libraries(config)
    for library in ("mlflow", "tensorboard", "math_verify", "lm_eval"):
        monkeypatch.setitem(sys.modules, library, None)
    expected = [
        "recipe.yaml:4:12: trackers.0: mlflow needs the library mlflow: pip install 'arctic_training[mlflow]'",
        "recipe.yaml:4:20: trackers.1: tensorboard needs the library tensorboard: pip install "
        "'arctic_training[tensorboard]'",
        "recipe.yaml:7:28: evaluators.0.scorers.1: math needs the library math_verify: pip install 'math-verify'",
        "recipe.yaml:8:5: evaluators.1: lm_eval needs the library lm_eval: pip install 'arctic_training[eval]'",
    ]
    saved: Any = None
    for refuses in (check_run, SFTTrainer, lambda one: evaluate(one, saved, tmp_path / "out")):
        with pytest.raises(MissingDependencyError) as error:
            refuses(config)
        assert str(error.value).splitlines() == expected
    assert not (tmp_path / "run").exists()
