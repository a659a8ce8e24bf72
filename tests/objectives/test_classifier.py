"""Classifiers: the loss of transformers, exact metrics, and that no cut changes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training.errors.types import DataError, RecipeError
from tests import processes, tiny
from tests.objectives import tiny_runs
from tests.objectives.dpo_runs import first_batch
from tests.trainer.weights import moved, same

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
LABELS = ["small", "large", "none"]


def rows(kind: str) -> list[dict[str, Any]]:
    texts = [WORDS[: n + 1] for n in range(7)]
    if kind == "words":
        tags = [["small" if len(word) < 4 else "large" for word in text] for text in texts]
        return [{"tokens": text, "tags": some} for text, some in zip(texts, tags, strict=True)]
    labels: list[Any] = ["small", "small", "large", "none", "large", "large", 2]
    if kind == "several":
        labels = [[], ["small"], ["small", "large"], [2], ["none"], ["large", 0], []]
    return [{"text": " ".join(text), "label": label} for text, label in zip(texts, labels, strict=True)]


def make_trainer(folder: Path, kind: str = "one", **keys: Any) -> Any:
    sections: dict[str, Any] = tiny_runs.save_files(folder, "rows.jsonl", rows(kind))
    sections["model"] |= {"new_weights": ["score"], "labels": LABELS}
    if kind == "words":
        sections["model"]["task"] = "token_classification"
    keys["data"] = {"multi_label": kind == "several", **keys.get("data", {})}
    return tiny_runs.make_trainer(folder, sections, type="classifier", **keys)


def train(folder: str, kind: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), kind, disable_dropout=True, **keys))


@pytest.mark.parametrize("kind", ["one", "several", "words"])
def test_the_loss_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    trainer = moved(make_trainer(tmp_path, kind, micro_batch_size=7, disable_dropout=True))
    batch = first_batch(trainer)
    model = trainer.model.module
    loss = trainer.loss(batch)
    gradients = tiny_runs.gradients(trainer, loss)
    theirs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    for ours, other in zip(gradients.values(), torch.autograd.grad(theirs, [*model.parameters()]), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    trainer.close()


def test_weights_and_smoothing_by_torch(tmp_path: Path) -> None:
    weights = [0.5, 2.0, 1.0]
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, class_weights=weights, label_smoothing=0.2))
    batch = first_batch(trainer)
    trainer.model.module.eval()
    logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(weights), reduction="none", label_smoothing=0.2)
    assert trainer.loss(batch).item() == pytest.approx(theirs(logits, batch["labels"]).mean().item(), rel=1e-5)
    trainer.close()
    with pytest.raises(RecipeError, match=r"class_weights: 2 weights, and the model has 3 labels"):
        make_trainer(tmp_path, class_weights=[1, 2])


@pytest.mark.parametrize("kind", ["one", "words"])
def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path, kind: str) -> None:
    """Seven texts: the last window of an epoch is short, and one of its micro-batches too."""
    expected = train(str(tmp_path), kind, micro_batch_size=4)
    same(expected, train(str(tmp_path), kind, micro_batch_size=1, gradient_accumulation_steps=4))
    for part in processes.share(train, 2, str(tmp_path), kind, micro_batch_size=2):
        same(expected, part)


def evaluate(folder: str, kind: str, micro: int) -> dict[str, float]:
    data = {"eval_sources": [str(Path(folder) / "rows.jsonl")]}
    trainer = moved(make_trainer(Path(folder), kind, micro_batch_size=micro, data=data))
    values: dict[str, float] = trainer.evaluate()
    if micro == 7:
        batch = first_batch(trainer)
        trainer.model.module.eval()
        logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        if kind == "several":
            predicted, true = logits > 0, batch["labels"] > 0
            assert values["accuracy/eval"] == pytest.approx((predicted == true).float().mean().item())
        else:
            counted = batch["labels"] != -100
            classes = torch.arange(3)
            predicted, true = (part[counted][:, None] == classes for part in (logits.argmax(-1), batch["labels"]))
            assert values["accuracy/eval"] == pytest.approx((predicted & true).any(-1).float().mean().item())
        pairs = zip(predicted.T.tolist(), true.T.tolist(), strict=True)
        scores = [2 * sum(map(min, p, t)) / (sum(p) + sum(t)) for p, t in pairs if sum(p) + sum(t)]
        assert values["macro_f1/eval"] == pytest.approx(sum(scores) / len(scores))
    trainer.close()
    return values


@pytest.mark.parametrize("kind", ["one", "several", "words"])
def test_an_evaluation_is_exact_over_batches_and_ranks(tmp_path: Path, kind: str) -> None:
    expected = evaluate(str(tmp_path), kind, 7)
    assert set(expected) == {"loss/eval", "accuracy/eval", "macro_f1/eval"}
    assert evaluate(str(tmp_path), kind, 2) == pytest.approx(expected, rel=1e-5)
    if kind == "one":  # the second rank has fewer texts
        assert processes.share(evaluate, 2, str(tmp_path), kind, 2) == [pytest.approx(expected, rel=1e-5)] * 2


@pytest.mark.parametrize("kind", ["one", "several", "words"])
def test_it_learns_and_transformers_loads_it(tmp_path: Path, kind: str) -> None:
    from transformers import pipeline

    adam = {"type": "adamw", "lr": 3e-3, "weight_decay": 0}
    checkpoint = {"type": "huggingface", "save_end_of_training": True}
    trainer = make_trainer(
        tmp_path,
        kind,
        micro_batch_size=7,
        train_iters=40,
        optimizer=adam,
        checkpoint=checkpoint,
        data={"eval_sources": [str(tmp_path / "rows.jsonl")]},
        disable_dropout=True,
    )
    trainer.train()
    assert trainer.evaluate()["accuracy/eval"] == 1
    trainer.close()
    (folder,) = (tmp_path / "run" / "checkpoints" / "huggingface").glob("step_*")
    text = rows(kind)[2]
    if kind == "words":
        entities = pipeline("token-classification", str(folder))(" ".join(text["tokens"]))
        assert [one["end"] for one in entities][-1] == len("one two three")
        assert next(one["entity"] for one in entities if one["end"] > len("one two ")) == "large"
    elif kind == "one":
        assert pipeline("text-classification", str(folder))(text["text"])[0]["label"] == "large"
    else:
        scores = pipeline("text-classification", str(folder), top_k=None)([text["text"]])[0]
        assert {one["label"] for one in scores if one["score"] > 0.5} == {"small", "large"}


def test_a_label_that_the_model_does_not_have_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "one", "label": "huge"}) + "\n")
    message = r"other\.jsonl:1: the label 'huge' is none of small, large, none; model\.labels names the labels"
    with pytest.raises(DataError, match=message):
        make_trainer(tmp_path, data={"sources": [str(tmp_path / "other.jsonl")]})


def test_a_tokenizer_without_its_own_tokens_is_no_obstacle(tmp_path: Path) -> None:
    tiny.save_tokenizer(tmp_path / "words")
    trainer = make_trainer(tmp_path, micro_batch_size=7, data={"max_length": 3})
    batch = first_batch(trainer)
    assert int(batch["attention_mask"].sum(1).max()) == 3
    trainer.close()


def tensor_trainer(folder: Path, *, labels: Any = None, sizes: tuple[int, ...] = (2, 16, 3), **keys: Any) -> Any:
    """Three clouds of points, eleven of them, and a network that can tell them apart."""
    points = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32) * 0.1
    classes = np.arange(11) % 3
    points += np.stack([np.cos(classes * 2.1), np.sin(classes * 2.1)], 1)
    np.savez(folder / "points.npz", rows=points, labels=classes.astype(np.int16) if labels is None else labels)
    file = str(folder / "points.npz")
    sections = {"model": {"type": "mlp", "sizes": list(sizes)}, "data": {"sources": [file], "eval_sources": [file]}}
    return tiny_runs.make_trainer(folder, sections, type="tensor_classifier", **keys)


def train_tensors(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(tensor_trainer(Path(folder), **keys))


def test_tensors(tmp_path: Path) -> None:
    trainer = tensor_trainer(tmp_path, micro_batch_size=11, train_iters=60, scheduler={"name": "constant"})
    batch = first_batch(trainer)
    theirs = torch.nn.functional.cross_entropy(trainer.model.module(batch["rows"]), batch["labels"].long())
    assert trainer.loss(batch).item() == pytest.approx(theirs.item(), rel=1e-5)
    trainer.train()
    values = trainer.evaluate()
    assert (values["accuracy/eval"], values["macro_f1/eval"]) == (1, 1)
    trainer.close()
    expected = train_tensors(str(tmp_path), micro_batch_size=4)
    same(expected, train_tensors(str(tmp_path), micro_batch_size=1, gradient_accumulation_steps=4))
    for part in processes.share(train_tensors, 2, str(tmp_path), micro_batch_size=2):  # once without a row
        same(expected, part)


def test_tensors_with_several_labels(tmp_path: Path) -> None:
    labels = np.eye(3, dtype=np.float32)[np.arange(11) % 3]
    trainer = tensor_trainer(tmp_path, labels=labels, micro_batch_size=11)
    batch = first_batch(trainer)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(trainer.model.module(batch["rows"]), batch["labels"])
    assert trainer.loss(batch).item() == pytest.approx(theirs.item(), rel=1e-5)
    trainer.close()


def test_labels_that_the_network_has_no_output_for_are_refused(tmp_path: Path) -> None:
    for labels in (np.arange(11), np.arange(11) - 1, np.zeros((11, 2), np.float32), np.zeros((11, 1), np.int64)):
        with pytest.raises(DataError, match=r"data\.sources: expected labels from 0 to 2 for each row, or 3 floats"):
            tensor_trainer(tmp_path, labels=labels)
    with pytest.raises(DataError, match=r"labels are torch\.uint8, which cannot hold -100 for no label; give int64"):
        tensor_trainer(tmp_path, labels=np.zeros(11, np.uint8))
