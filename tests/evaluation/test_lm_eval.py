"""A task of the lm-evaluation-harness, on rows on disk: its accuracy is that of the model's own log-likelihoods."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml

from arctic_training.config.sections.component import parse_component
from arctic_training.errors.types import InputError
from arctic_training.evaluation.lm_eval import LMEvalEvaluator
from tests.evaluation.test_generate import run_of

WORDS = ["one", "two", "three", "four", "five", "six"]


def make_task(folder: Path) -> list[dict[str, Any]]:
    """The task arc_easy with questions of its own form."""
    rows = []
    for number in range(8):
        choices = [WORDS[(number + n) % 6] + " and" * (n % 2) for n in range(3)]
        key = {"label": ["A", "B", "C"], "text": choices}
        rows.append({"id": str(number), "question": f"what is {WORDS[number % 6]}", "choices": key, "answerKey": "B"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"),
        "task": "arc_of_a_test",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "training_split": None,
        "validation_split": None,
    }
    (folder / "arc_of_a_test.yaml").write_text(yaml.safe_dump(task))
    return rows


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    right = 0
    for row in rows:
        sums = []
        for choice in row["choices"]["text"]:
            prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
            both = tokenizer(f"Question: {row['question']}\nAnswer: {choice}")["input_ids"]
            with torch.no_grad():
                log_probs = model(torch.tensor([both])).logits[0].log_softmax(-1)
            targets = range(len(prompt), len(both))
            sums.append(sum(float(log_probs[n - 1, both[n]]) for n in targets))
        right += sums.index(max(sums)) == 1
    return right / len(rows)


def test_the_accuracy_of_a_task_is_that_of_the_models_likelihoods(tiny_model: Path, tmp_path: Path) -> None:
    rows = make_task(tmp_path)
    run = run_of(tiny_model, tmp_path / "run", [""] * 4)
    section = {"type": "lm_eval", "tasks": ["arc_of_a_test"], "include_path": str(tmp_path), "batch_size": 3}
    config: Any = parse_component("evaluator", section)
    evaluator = LMEvalEvaluator(config)
    evaluator.check(run)
    metrics = evaluator(run)
    assert metrics["acc/arc_of_a_test"] == accuracy(run.engines["model"].module, run.tokenizer, rows)
    assert set(metrics) == {"acc/arc_of_a_test", "acc_norm/arc_of_a_test"} == set(evaluator.metrics([]) or ())
    file = tmp_path / "run" / "generations" / "arc_of_a_test" / "step_7.jsonl"
    assert [json.loads(line)["doc"]["id"] for line in file.read_text().splitlines()] == [row["id"] for row in rows]


FILTERS = [
    {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "the answer is (\\w+)"}]},
    {"name": "flexible", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}]},
]


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, ["exact_match/answers"]),
        ({"filter_list": FILTERS[:1]}, ["exact_match/answers"]),
        ({"filter_list": FILTERS}, ["exact_match,strict/answers", "exact_match,flexible/answers"]),
        ({"metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]}, ["bleu/answers"]),
    ],
)
def test_a_metric_of_several_filters_is_named_by_them(
    tiny_model: Path, tmp_path: Path, more: dict[str, Any], names: list[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "one", "a": "two"}\n{"q": "two", "a": "one"}\n')
    task = {
        "task": "answers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"max_gen_toks": 3, "until": ["."]},
    }
    (tmp_path / "answers.yaml").write_text(yaml.safe_dump(task | more))
    config: Any = parse_component("evaluator", {"type": "lm_eval", "tasks": ["answers"], "include_path": str(tmp_path)})
    evaluator = LMEvalEvaluator(config)
    assert evaluator.metrics([]) == names
    assert set(evaluator(run_of(tiny_model, tmp_path / "run", [""] * 4))) == set(names)


def test_metrics_that_code_computes_are_not_known_before_an_evaluation(tmp_path: Path) -> None:
    task = "task: coded\ndataset_path: json\nprocess_results: !function own.results\nmetric_list: [{metric: acc}]\n"
    (tmp_path / "coded.yaml").write_text(task)
    (tmp_path / "several.yaml").write_text("group: several\ntask: [coded]\n")
    for name in ("coded", "several"):
        section = {"type": "lm_eval", "tasks": [name], "include_path": str(tmp_path)}
        config: Any = parse_component("evaluator", section)
        assert LMEvalEvaluator(config).metrics([]) is None


def test_a_task_whose_data_cannot_be_loaded_is_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    make_task(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    config: Any = parse_component(
        "evaluator", {"type": "lm_eval", "tasks": ["arc_of_a_test"], "include_path": str(tmp_path)}
    )
    run = run_of(tiny_model, tmp_path / "run", [""] * 4)
    with pytest.raises(InputError, match=r"lm_eval: tasks: the data of arc_of_a_test cannot be loaded: .*rows.jsonl"):
        LMEvalEvaluator(config).check(run)
    run.eval_loaders, run.train_loader = {}, None  # as in `validate`
    LMEvalEvaluator(config).check(run)


@pytest.mark.nightly
def test_a_task_that_does_not_exist_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Which takes the seconds of reading all tasks that there are."""
    config: Any = parse_component("evaluator", {"type": "lm_eval", "tasks": ["arc_eesy"]})
    with pytest.raises(InputError, match="no task is named 'arc_eesy'; did you mean 'arc_easy'"):
        LMEvalEvaluator(config).check_recipe(run_of(tiny_model, tmp_path, [""] * 4))
