"""Two things that would write under one name: each has a name of its own, or the run is refused."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.component import TrainerView
from arctic_training.errors.types import RecipeError, ScoringError
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.evaluation.scorer import Scorer
from arctic_training.metrics import merge_metrics
from arctic_training.state import Progress, RunState
from tests import tiny


class Twelve(Evaluator):
    """Measures what the run measures itself."""

    name = "twelve_for_tests"

    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        return {"loss/a": 12.0, "twelve": 12.0}


class Other(Evaluator):
    """Gives what the test puts into it."""

    name = "other_for_tests"
    values: ClassVar[Any] = None

    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        return self.values  # type: ignore[no-any-return]


class Reference(Scorer):
    """Is called like a part of every row that is kept."""

    name = "reference"

    def __call__(self, generated: str, reference: str) -> float:
        return float(len(reference))


class Telling(SFTTrainer):
    """Records under names that the run uses itself."""

    def loss(self, batch: Any) -> torch.Tensor:
        for name in ("lr", "step", "grad_norm"):
            self.record(name, 7.0)
        return super().loss(batch)


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    files = [tmp_path / name for name in ("a.jsonl", "b/a.jsonl", "a_2.jsonl")]
    for n, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        tiny.save_chats(file, 2 + n, seed=n)
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(files[0])], "eval_sources": list(map(str, files)), "max_length": 400},
        "output_dir": str(tmp_path / "run"),
        "train_iters": 1,
        "loss_log_interval": 0,
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "step_0.jsonl").read_text().splitlines()]


def test_every_measure_and_every_answer_is_kept(recipe: dict[str, Any], tmp_path: Path) -> None:
    never, always = {"type": "regex", "pattern": "^\\b$"}, {"type": "regex", "pattern": "^"}
    generate = {"type": "generate", "max_new_tokens": 2}
    recipe["evaluators"] = [
        {**generate, "scorers": [never, always, "reference"]},
        {**generate, "scorers": [always, never], "max_new_tokens": 1},
        "twelve_for_tests",
    ]
    trainer = SFTTrainer(get_config(recipe))
    try:
        measured = trainer.evaluate()
    finally:
        trainer.close()
    for name, count in (("a", 2), ("a#2", 3), ("a_2", 4)):
        kept, second = rows(tmp_path / "run/generations" / name), rows(tmp_path / "run/generations#2" / name)
        assert len(kept) == len(second) == count
        assert [measured[f"regex{n}/{name}"] for n in ("", "#2", "#3", "#4")] == [0, 1, 1, 0]
        assert {row["regex"] for row in kept} == {row["regex#2"] for row in second} == {0}
        assert {row["regex#2"] for row in kept} == {row["regex"] for row in second} == {1}
        assert all(row["reference#2"] == len(row["reference"]) for row in kept)
        assert any(row["generated"].startswith(other["generated"]) for row, other in zip(kept, second, strict=True))
        assert f"loss/{name}" in measured
    assert measured["loss/a"] != measured["loss#2/a"] == measured["twelve"] == 12


def test_what_a_trainer_records_takes_the_place_of_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    trainer = Telling(get_config(recipe))
    trainer.train()
    trainer.close()
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert row["step"] == 1 and row["lr"] < 1 and row["grad_norm"] != 7
    assert row["lr#2"] == row["step#2"] == row["grad_norm#2"] == 7


def test_two_trackers_do_not_write_one_file(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["trackers"] = [{"type": "jsonl", "path": str(tmp_path / "run/../run/metrics.jsonl")}]
    with pytest.raises(RecipeError, match=r"trackers: jsonl and jsonl both write .*metrics.jsonl; remove one"):
        SFTTrainer(get_config(recipe))
    assert not (tmp_path / "run").exists()
    for path in (None, str(tmp_path / "other.jsonl")):  # what the recipe alone shows is refused when it is read
        with pytest.raises(
            RecipeError, match=r"train_log_metrics_path: .*(metrics|other).jsonl is written by two trackers"
        ):
            get_config({**recipe, "train_log_metrics_path": path, "trackers": [{"type": "jsonl", "path": path}]})
    assert get_config({**recipe, "train_log_metrics_path": str(tmp_path / "other.jsonl"), "trackers": ["jsonl"]})


def test_a_part_of_the_state_is_not_put_over_another() -> None:
    state = RunState(progress=Progress())
    with pytest.raises(ValueError, match="already has a part 'progress'"):
        state.add({"progress": Progress()})


def test_values_of_one_name_are_both_there() -> None:
    both = merge_metrics({"loss/a": 1.0}, {"loss/a": 2.0, "loss/b": 3.0})
    assert both == {"loss/a": 1.0, "loss#2/a": 2.0, "loss/b": 3.0}


def test_an_evaluator_may_measure_in_tensors_and_what_is_no_number_ends_the_run_by_its_name(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe |= {"evaluators": ["other_for_tests"], "evaluate_first": True, "eval_interval": 1}
    values = {"tensor": torch.tensor(1.5), "numpy": np.float32(2.5), "whole": 3}
    monkeypatch.setattr(Other, "values", values)
    trainer = SFTTrainer(get_config(recipe))
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 1]  # nothing is lost that is logged after it
    assert [{name: row[name] for name in values} for row in (rows[0], rows[2])] == [
        {"tensor": 1.5, "numpy": 2.5, "whole": 3.0}
    ] * 2
    for wrong, message in (
        ({"text": "7"}, "evaluators: 'other_for_tests' returned '7' under 'text'; expected a number"),
        ({"pair": torch.ones(2)}, "under 'pair'; expected a number"),
        (None, "returned None; expected a mapping from names to numbers"),
    ):
        monkeypatch.setattr(Other, "values", wrong)
        with pytest.raises(ScoringError, match=message):
            trainer.evaluate()
    trainer.close()
