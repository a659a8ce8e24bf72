"""The quick start: its data on their own, and the recipe itself cut short."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup
from tests.processes import HANG

PROJECT = Path(__file__).parents[2] / "projects" / "quickstart"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    """The project's train.py, as the recipe's reader imports it."""
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "reasoning_gym").__module__]


def rows_of(project: ModuleType, split: str, **options: Any) -> list[list[dict[str, str]]]:
    section = {"task": "word_sequence_reversal", "options": {"min_words": 3, "max_words": 5}, **options}
    config = project.ReasoningGymConfig(type="reasoning_gym", **section)
    return [row["messages"] for row in project.ReasoningGymSource(None, config).load(config, split)]


def test_no_question_is_both_trained_on_and_held_out(project: ModuleType) -> None:
    trained, held = rows_of(project, "train", count=300), rows_of(project, "eval", count=100, seed=0)
    other = rows_of(project, "eval", count=100, seed=7)
    questions = [{turns[0]["content"] for turns in rows} for rows in (trained, held, other)]
    assert [len(one) for one in questions] == [300, 100, 100]
    assert not questions[0] & questions[1] and not questions[0] & questions[2]
    assert rows_of(project, "train", count=300) == trained


def test_every_answer_is_the_reversed_list(project: ModuleType) -> None:
    for question, answer in rows_of(project, "train", count=50):
        words = question["content"].rsplit(": ", 1)[1].split(", ")
        assert answer == {"role": "assistant", "content": ", ".join(reversed(words))}


def test_shots_are_solved_training_questions_before_each_held_out_one(project: ModuleType) -> None:
    plain, shown = rows_of(project, "eval", count=10), rows_of(project, "eval", count=10, shots=3)
    assert [turns[-2:] for turns in shown] == plain
    before = shown[0][:-2]
    assert len(before) == 6 and all(turns[:-2] == before for turns in shown)
    trained = rows_of(project, "train", count=50)
    assert before[:2] in trained
    taught = rows_of(project, "train", count=10, shots=3)
    assert len(taught) == 10 and all(turns[-2:] not in (before[:2], before[2:4], before[4:]) for turns in taught)


def test_a_task_with_too_few_questions_says_so(project: ModuleType) -> None:
    with pytest.raises(DataError, match="coin_flip has only"):
        rows_of(project, "train", task="coin_flip", options={"min_trials": 3, "max_trials": 3}, count=100)


@pytest.mark.nightly
def test_the_recipe_trains_scores_and_exports(tmp_path: Path) -> None:
    """Three updates: enough for a folder that plain transformers loads. What it learns, the README measures."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "arctic_training.cli.main", str(PROJECT / "recipe.yaml"), f"output_dir={run}"]
    command += ["train_iters=3", "data.eval_sources.0.count=2", "micro_batch_size=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=HANG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("exact match")] == [
        "exact match before",
        "exact match after",
    ]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)
    kept = sorted(path.name for path in (run / "generations").rglob("*.jsonl"))
    assert kept == ["step_0.jsonl", "step_3.jsonl"]

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "checkpoints" / "huggingface" / "step_3"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Reverse this list of words: one, two, three"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
