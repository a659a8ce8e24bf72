"""Regression on texts: the loss of transformers, exact metrics, that no cut changes them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.errors.types import DataError, RecipeError
from tests import processes
from tests.objectives import tiny_runs
from tests.objectives.dpo_runs import first_batch
from tests.objectives.test_classifier import WORDS
from tests.trainer.weights import moved, same

NUMBERS = [0.5, -1.25, 2, 3.75, 0.1, 1e1, -7]
ROWS: list[dict[str, Any]] = [{"text": " ".join(WORDS[: n + 1]), "label": label} for n, label in enumerate(NUMBERS)]
CORRELATIONS = [{"type": "torchmetrics", "metric": f"{name}CorrCoef"} for name in ("Pearson", "Spearman")]


def make_trainer(folder: Path, **keys: Any) -> Any:
    sections: dict[str, Any] = tiny_runs.save_files(folder, "rows.jsonl", ROWS)
    sections["model"] |= {"new_weights": ["score"], "task": "regression"}
    return tiny_runs.make_trainer(folder, sections, type="classifier", **keys)


def test_loss_and_gradient_are_those_of_transformers(tmp_path: Path) -> None:
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, disable_dropout=True))
    batch = first_batch(trainer)
    assert sorted(batch["labels"].tolist()) == sorted(torch.tensor(NUMBERS).tolist())
    model = trainer.model.module
    loss = trainer.loss(batch)
    gradients = tiny_runs.gradients(trainer, loss)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    theirs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    for ours, other in zip(gradients.values(), torch.autograd.grad(theirs, [*model.parameters()]), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    trainer.close()


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    keys |= {"optimizer": {"type": "sgd", "lr": 0.01}, "disable_dropout": True}
    return tiny_runs.train(make_trainer(Path(folder), **keys))


def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path) -> None:
    """Seven texts: the last window of an epoch is short, and one of its micro-batches too."""
    expected = train(str(tmp_path), micro_batch_size=4)
    same(expected, train(str(tmp_path), micro_batch_size=1, gradient_accumulation_steps=4))
    for part in processes.share(train, 2, str(tmp_path), micro_batch_size=2):
        same(expected, part)


def evaluate(folder: str, micro: int) -> dict[str, float]:
    from scipy import stats

    data = {"eval_sources": [str(Path(folder) / "rows.jsonl")]}
    trainer = moved(make_trainer(Path(folder), micro_batch_size=micro, data=data, evaluators=CORRELATIONS))
    values: dict[str, float] = trainer.evaluate()
    if micro == 7:
        batch = first_batch(trainer)
        trainer.model.module.eval()
        outputs = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].detach()
        assert values["mse/eval"] == pytest.approx((outputs - batch["labels"]).square().mean().item(), rel=1e-5)
        for name, statistic in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            expected = statistic(outputs.double().numpy(), batch["labels"].double().numpy()).statistic
            assert values[f"{name}_corr_coef/eval"] == pytest.approx(expected, abs=1e-5)
    trainer.close()
    return values


def test_an_evaluation_is_exact_over_batches_and_ranks(tmp_path: Path) -> None:
    expected = evaluate(str(tmp_path), 7)
    assert set(expected) == {"loss/eval", "mse/eval", "pearson_corr_coef/eval", "spearman_corr_coef/eval"}
    assert expected["mse/eval"] == expected["loss/eval"]
    assert evaluate(str(tmp_path), 2) == pytest.approx(expected, rel=1e-5)
    assert processes.share(evaluate, 2, str(tmp_path), 2) == [pytest.approx(expected, rel=1e-5)] * 2


def test_it_learns_and_transformers_loads_it_as_a_regression(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    trainer = make_trainer(
        tmp_path,
        micro_batch_size=7,
        train_iters=150,
        optimizer={"type": "adamw", "lr": 1e-2, "weight_decay": 0},
        checkpoint={"type": "huggingface", "save_end_of_training": True},
        data={"eval_sources": [str(tmp_path / "rows.jsonl")]},
        disable_dropout=True,
    )
    trainer.train()
    assert trainer.evaluate()["mse/eval"] < 0.1
    outputs, labels = trainer.predictions(first_batch(trainer))
    expected = dict(zip(labels.tolist(), outputs.tolist(), strict=True))
    trainer.close()
    (folder,) = (tmp_path / "run" / "checkpoints" / "huggingface").glob("step_*")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    for row in ROWS:
        label = torch.tensor([row["label"]], dtype=torch.float32)
        predicted = model(**tokenizer(row["text"], return_tensors="pt"), labels=label)
        assert predicted.logits.item() == pytest.approx(expected[label.item()], rel=1e-4)
        assert predicted.loss.item() == pytest.approx((predicted.logits.item() - label.item()) ** 2, rel=1e-3, abs=1e-9)
    (shown,) = pipeline("text-classification", str(folder))(ROWS[5]["text"])
    assert shown["score"] == pytest.approx(expected[10], rel=1e-4)  # no probability


@pytest.mark.parametrize("label", ["large", "nan", 1e39, True, [1.0], -100, -100.0])
def test_a_label_that_is_no_number_is_refused_with_its_line(tmp_path: Path, label: object) -> None:
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "one", "label": label}) + "\n")
    why = "is the number that means no label" if label == -100 else "is no finite number"
    with pytest.raises(DataError, match=rf"other\.jsonl:1: the label .* {why}"):
        make_trainer(tmp_path, data={"sources": [str(tmp_path / "other.jsonl")]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_weights": [1.0]}, "class_weights: with model.task: regression there are no classes"),
        ({"label_smoothing": 0.1}, "label_smoothing: with model.task: regression there are no classes"),
        ({"model": {"num_labels": 2}}, "model.num_labels: 2 labels, and the trainer needs 1"),
        ({"type": "reward"}, "model.task: regression, and the trainer takes sequence_classification here"),
    ],
)
def test_keys_without_a_meaning_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    sections = tiny_runs.save_files(tmp_path, "rows.jsonl", ROWS)
    sections["model"] |= {"new_weights": ["score"], "task": "regression"}
    with pytest.raises(RecipeError, match=message):
        tiny_runs.make_trainer(tmp_path, sections, **{"type": "classifier", **keys})


def test_a_text_with_several_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.multi_label: with model\.task: regression a text has one number"):
        make_trainer(tmp_path, data={"multi_label": True})


def test_numbers_of_a_table_are_read_and_rows_without_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\none,0.1\ntwo,-3\nthree,\nfour,1e2\n", encoding="utf-8")
    data = {"sources": [str(tmp_path / "rows.csv")], "max_share_without_targets": 0.5}
    trainer = make_trainer(tmp_path, micro_batch_size=4, data=data)
    assert sorted(first_batch(trainer)["labels"].tolist()) == torch.tensor([-3, 0.1, 100]).tolist()
    trainer.close()


def test_the_samples_of_a_classifier_are_others(tmp_path: Path) -> None:
    (tmp_path / "zeros.jsonl").write_text('{"text": "one", "label": 0}\n' * 2)
    for task, dtype in (("sequence_classification", torch.int64), ("regression", torch.float32)):
        model = {"task": task, "num_labels": 1}
        trainer = make_trainer(tmp_path, data={"sources": [str(tmp_path / "zeros.jsonl")]}, model=model)
        assert first_batch(trainer)["labels"].dtype == dtype
        trainer.close()
