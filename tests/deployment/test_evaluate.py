"""An evaluation alone measures what the run measured at its end, and does not touch the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.checkpoint.saved_model import find_saved_model
from arctic_training.deployment.evaluate import evaluate
from arctic_training.errors.types import InputError
from arctic_training.registry import lookup
from arctic_training.trainer.lock import Lock
from tests.bad_inputs.case import listing
from tests.contract import cases
from tests.deployment.runs import TrainedRun, recipe


def measure(run: TrainedRun, kind: str, folder: Path, *, lora: bool = False, **keys: Any) -> dict[str, float]:
    config = get_config(recipe(run.folder, lora=lora, **keys))
    return evaluate(config, find_saved_model(str(run.checkpoint(kind))), folder)


@pytest.mark.parametrize("kind", ["deepspeed", "huggingface"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_metrics_are_those_of_the_run(
    full_run: TrainedRun, lora_run: TrainedRun, tmp_path: Path, kind: str, lora: bool
) -> None:
    run = lora_run if lora else full_run
    before = listing(run.run_dir)
    lock = Lock([run.run_dir])  # as of a run that is still going on
    try:
        values = measure(run, kind, tmp_path, lora=lora)
    finally:
        lock.release()
    # merged weights are rounded once more; the perplexity of a tiny model is some hundreds
    assert values == pytest.approx(run.metrics, rel=2e-6 if lora else 0, abs=1e-6 if lora else 0)
    assert listing(run.run_dir) == before
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["metrics"] == values and result["samples"] == {"eval": 3} and result["step"] == 4
    (rows,) = (tmp_path / "generations" / "eval").iterdir()
    of_run = run.run_dir / "generations" / "eval" / rows.name
    assert rows.name == "step_4.jsonl" and rows.read_text() == of_run.read_text()


def test_another_split_is_measured_and_the_training_data_are_not_read(full_run: TrainedRun, tmp_path: Path) -> None:
    data = {"sources": ["missing.jsonl"], "eval_sources": [str(full_run.folder / "test.jsonl")], "max_length": 400}
    values = measure(full_run, "huggingface", tmp_path, data=data)
    assert values["loss/eval"] != pytest.approx(full_run.metrics["loss/eval"], abs=1e-3)
    assert json.loads((tmp_path / "evaluation.json").read_text())["samples"] == {"eval": 4}


def test_without_evaluation_sets_nothing_is_measured(full_run: TrainedRun, tmp_path: Path) -> None:
    data = {"sources": [str(full_run.folder / "chats.jsonl")], "max_length": 400}
    with pytest.raises(InputError, match=r"data\.eval_sources: nothing to evaluate on"):
        measure(full_run, "huggingface", tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dpo", "gan", "grpo", "seq2seq"])
def test_it_measures_what_any_trainer_does(name: str, tmp_path: Path) -> None:
    sections = [{"type": "deepspeed", "save_end_of_training": True}]
    more: dict[str, Any] = {"train_iters": 2, "evaluate_last": True, "output_dir": str(tmp_path / "run")}
    own = cases.recipe(name, tmp_path, **more, checkpoint=sections)
    own["data"]["eval_sources"] = own["data"]["sources"]
    trainer: Any = lookup("trainer", name)(get_config(own))  # type: ignore[call-arg]
    of_run: dict[str, float] = {}
    trainer.callbacks.append(("post-evaluate", lambda _, values: of_run.update(values)))
    trainer.train()
    trainer.close()
    assert evaluate(get_config(own), find_saved_model(str(tmp_path / "run")), tmp_path / "out") == of_run
    assert of_run
