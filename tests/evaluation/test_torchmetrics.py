"""Metrics of torchmetrics: those of scikit-learn, sacrebleu and rouge-score, whatever the batches and ranks."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sklearn

from arctic_training import SFTTrainer, TensorClassifierTrainer, get_config
from arctic_training.config.sections.component import parse_component
from arctic_training.distributed import process_group
from arctic_training.errors.types import InputError
from arctic_training.evaluation.torchmetrics import TorchmetricsEvaluator, TorchmetricsScorer, make_metric, numbers
from tests import processes, tiny
from tests.evaluation.test_generate import evaluator, run_of
from tests.objectives import test_classifier

ROWS = 11


def section(metric: str, name: str = "", **kwargs: Any) -> dict[str, Any]:
    return {"type": "torchmetrics", "metric": metric, "kwargs": kwargs, "name": name}


def make_trainer(folder: Path, classes: int, micro: int, sections: list[dict[str, Any]]) -> Any:
    draw = np.random.default_rng(0)
    points, labels = draw.normal(size=(ROWS, 2)).astype(np.float32), np.arange(ROWS) % classes
    labels[4] = -100
    if not (folder / "points.npz").exists():
        np.savez(folder / "points.npz", rows=points, labels=labels)
    source = {"type": "tensor_file", "name_or_path": str(folder / "points.npz")}
    recipe = {
        "type": "tensor_classifier",
        "model": {"type": "mlp", "sizes": [2, 8, classes], "dropout": 0.1},
        "data": {"sources": [source], "eval_sources": [source]},
        "micro_batch_size": micro,
        "output_dir": str(folder / "run"),
        "evaluators": sections,
        "logger": {"level": "ERROR"},
    }
    return TensorClassifierTrainer(get_config(recipe))


THREE = [
    section("classification.MulticlassF1Score", num_classes=3, average="macro"),
    section("AUROC", "auc", task="multiclass", num_classes=3),
    section("classification.MulticlassRecall", num_classes=3, average=None),
]
TWO = [section("classification.BinaryAUROC"), section("F1Score", task="binary")]


def measure(folder: str, classes: int, micro: int) -> dict[str, float]:
    trainer = make_trainer(Path(folder), classes, micro, THREE if classes == 3 else TWO)
    values: dict[str, float] = trainer.evaluate()
    trainer.close()
    return values


def probabilities(folder: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    trainer = make_trainer(folder, classes, ROWS, [])
    table = trainer.eval_loaders["eval"].dataset
    with torch.no_grad():
        scores = trainer.model.module.eval()(table["rows"]).softmax(-1)
    trainer.close()
    counted = table["labels"] != -100
    return scores[counted].double().numpy(), table["labels"][counted].numpy()


def test_several_classes_are_measured_as_by_sklearn_over_batches_and_ranks(tmp_path: Path) -> None:
    expected = measure(str(tmp_path), 3, ROWS)
    scores, labels = probabilities(tmp_path, 3)
    predicted = scores.argmax(1)
    assert expected["multiclass_f1_score/eval"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    scores /= scores.sum(1, keepdims=True)  # they are rounded to fp32
    assert expected["auc/eval"] == pytest.approx(sklearn.roc_auc_score(labels, scores, multi_class="ovr"))
    recalls = [expected[f"multiclass_recall_{one}/eval"] for one in range(3)]
    assert recalls == pytest.approx(sklearn.recall_score(labels, predicted, average=None).tolist())
    own = {name: value for name, value in expected.items() if not name.startswith("loss")}
    evaluators = [TorchmetricsEvaluator(parse_component("evaluator", one)) for one in THREE]  # type: ignore[arg-type]
    names = [name for one in evaluators for name in one.metrics(["eval"]) or ()]
    assert own.keys() == {"accuracy/eval", "macro_f1/eval", *names} and len(own) == 2 + len(names)
    for values in (measure(str(tmp_path), 3, 2), *processes.share(measure, 2, str(tmp_path), 3, 2)):
        assert {name: values[name] for name in own} == pytest.approx(own, rel=1e-6)


def test_two_classes_are_measured_as_by_sklearn(tmp_path: Path) -> None:
    values = measure(str(tmp_path), 2, 4)
    scores, labels = probabilities(tmp_path, 2)
    assert values["binary_auroc/eval"] == pytest.approx(sklearn.roc_auc_score(labels, scores[:, 1]))
    assert values["f1_score/eval"] == pytest.approx(sklearn.f1_score(labels, scores[:, 1] > 0.5))


ARGUMENTS: list[dict[str, Any]] = [
    {"num_classes": 3},
    {"num_classes": 3, "average": None},
    {"num_labels": 4},
    {"num_labels": 4, "average": None},
    {},
]


@pytest.mark.parametrize("kwargs", ARGUMENTS, ids=str)
def test_the_names_of_what_is_measured_are_known_before_any_row(kwargs: dict[str, Any]) -> None:
    """For every class of the library that computes numbers of random predictions with these arguments."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(kwargs.get("num_classes", 2), (40, 4) if "num_labels" in kwargs else (40,), generator=draw)
    scores = torch.rand(labels.shape, generator=draw)
    if "num_classes" in kwargs:
        scores = torch.rand(40, 3, generator=draw).softmax(-1)
    kinds = set()
    for kind in vars(torchmetrics.classification):
        config: Any = parse_component("evaluator", section(f"classification.{kind}", "x", **kwargs))
        try:
            metric = make_metric(config, "")
            metric.update(scores, labels)
            expected = list(numbers(metric.compute(), "x"))
        except Exception:  # another argument or shape is wanted, or it computes curves
            continue
        kinds.add(kind)
        assert TorchmetricsEvaluator(config).metrics(["a", "b"]) == [f"{n}/{one}" for one in "ab" for n in expected]
    assert len(kinds) > 10


@pytest.mark.parametrize("kind", ["several", "words"])
def test_texts_and_words_are_measured_as_by_sklearn(kind: str, tmp_path: Path) -> None:
    multilabel = section("classification.MultilabelF1Score", "f1", num_labels=3)
    multiclass = section("classification.MulticlassF1Score", "f1", num_classes=3, average="macro")
    one = multilabel if kind == "several" else multiclass
    data = {"eval_sources": [str(tmp_path / "rows.jsonl")]}
    trainer = test_classifier.make_trainer(tmp_path, kind, micro_batch_size=2, data=data, evaluators=[one])
    values = trainer.evaluate()
    trainer.model.module.eval()
    parts = [trainer.predictions(batch) for batch in trainer.eval_loaders["eval"]]
    scores, labels = (torch.cat(several).detach().numpy() for several in zip(*parts, strict=True))
    predicted = scores > 0.5 if kind == "several" else scores.argmax(1)
    trainer.close()
    expected = sklearn.f1_score(labels, predicted, average="macro", zero_division=0, labels=range(3))
    assert values["f1/eval"] == pytest.approx(expected)
    assert len(labels) == (7 if kind == "several" else 28)


@pytest.mark.parametrize(
    ("metric", "kwargs", "message"),
    [
        ("classification.MulticlassF1Scor", {}, "there is no such metric; did you mean 'MulticlassF1Score'"),
        ("clasification.MulticlassF1Score", {}, "No module named 'torchmetrics.clasification'"),
        ("classification.MulticlassF1Score", {"num_class": 3}, "kwargs: .*num_class"),
        ("classification.MulticlassF1Score", {"num_classes": 3}, "measures predictions of classes, and type: sft"),
    ],
)
def test_what_cannot_be_measured_is_refused(metric: str, kwargs: dict[str, Any], message: str) -> None:
    run: Any = SimpleNamespace(config=SimpleNamespace(type="sft"), engines={}, eval_loaders={})
    config: Any = parse_component("evaluator", section(metric, **kwargs))
    with pytest.raises(InputError, match=rf"evaluators: torchmetrics: {metric}:? {message}"):
        TorchmetricsEvaluator(config).check_recipe(run)


def test_a_metric_of_other_classes_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = section("classification.MulticlassF1Score", num_classes=2)
    with pytest.raises(InputError, match="MulticlassF1Score fails on the first batch of eval: "):
        make_trainer(tmp_path, 3, 2, [wrong])
    assert not (tmp_path / "run").exists()


def scorer(metric: str, value: str = "", **kwargs: Any) -> TorchmetricsScorer:
    config: Any = parse_component("scorer", {**section(metric, **kwargs), "value": value})
    return TorchmetricsScorer(config)


TEXTS = ["the cat is on the mat", "there is a dog", "one two three four five"]
REFERENCES = ["the cat sat on the mat", "there was a big dog", "one two three four five six"]


def test_texts_are_scored_as_by_the_libraries_of_each_measure() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    theirs = corpus_bleu(TEXTS, [REFERENCES], tokenize="none", smooth_method="none", force=True).score / 100
    assert scorer("text.BLEUScore").corpus_score(TEXTS, REFERENCES) == pytest.approx(theirs, rel=1e-5)
    assert scorer("text.SacreBLEUScore", tokenize="none").corpus_score(TEXTS, REFERENCES) == pytest.approx(
        theirs, rel=1e-5
    )
    rouge = RougeScorer(["rougeL"]).score(REFERENCES[0], TEXTS[0])["rougeL"].fmeasure
    mine = scorer("text.ROUGEScore", "rougeL_fmeasure", rouge_keys="rougeL")
    assert mine(TEXTS[0], REFERENCES[0]) == pytest.approx(rouge, rel=1e-6)
    assert scorer("text.WordErrorRate")("a b c d", "a x c d") == pytest.approx(0.25)
    several = scorer("text.ROUGEScore", rouge_keys="rougeL")
    with pytest.raises(InputError, match="it has several numbers; give one as value: rougeL_fmeasure, "):
        several("a", "a")
    assert (several.label, mine.label, scorer("text.BLEUScore").label) == ("rouge_score", "rouge_score", "bleu_score")


def edits(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for n, a in enumerate(one, 1):
        diagonal, row[0] = row[0], n
        for m, b in enumerate(other, 1):
            diagonal, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, diagonal + (a != b))
    return row[-1]


CER = {"type": "torchmetrics", "metric": "text.CharErrorRate"}
ANSWERS = ["two", "x", "seven eight nine ten", "no"]


def share(folder: str, run_dir: str) -> dict[str, float]:
    process_group.init_process_group()
    measured = evaluator(batch_size=1, scorers=[CER, CER])(run_of(Path(folder), Path(run_dir), ANSWERS))
    process_group.destroy_process_group()
    return measured


def test_an_evaluation_logs_the_measure_of_all_texts_together(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model")
    both = processes.run(share, 2, str(folder), str(tmp_path / "run"))
    lines = (tmp_path / "run/generations/held_out/step_7.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    total = sum(edits(row["generated"], row["reference"]) for row in rows) / sum(len(row["reference"]) for row in rows)
    assert both[0] == both[1] == pytest.approx({"char_error_rate/held_out": total, "char_error_rate#2/held_out": total})
    singles = [edits(row["generated"], row["reference"]) / len(row["reference"]) for row in rows]
    assert [row["char_error_rate"] for row in rows] == pytest.approx(singles)
    assert sum(singles) / 4 != pytest.approx(total, rel=0.01)


def test_a_run_with_another_text_metric_is_refused_before_its_data_are_prepared(
    tiny_model: Path, tmp_path: Path
) -> None:
    wrong = {"type": "torchmetrics", "metric": "text.BLEU"}
    recipe = {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tmp_path / "missing.jsonl")], "max_length": 256},
        "output_dir": str(tmp_path / "run"),
        "evaluators": [{"type": "generate", "scorers": [wrong]}],
    }
    with pytest.raises(InputError, match=r"scorers: torchmetrics: text\.BLEU: there is no such metric"):
        SFTTrainer(get_config(recipe))
