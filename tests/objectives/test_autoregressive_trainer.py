"""Scheduled sampling: what is fed, what is not, and that the loss is that of a plain loop in torch."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from arctic_training.data.batching.noise import uniform
from tests import tiny
from tests.objectives.tiny_runs import loss_and_gradients, make_trainer, train


def sections(folder: Path, **data: Any) -> dict[str, Any]:
    if not (folder / "model").exists():
        tiny.save_model(folder / "model")
        texts = (" ".join(turn["content"] for turn in row["messages"]) for row in tiny.chats(12, seed=3))
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {
        "type": {},
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": {
            "sources": [str(folder / "text.jsonl")],
            "max_length": 40,
            "div_length": 1,
            "cache_dir": str(folder / "cache"),
            **data,
        },
    }


def make(folder: Path, *, data: dict[str, Any] | None = None, **keys: Any) -> Any:
    parts = sections(folder, **(data or {}))
    del parts["type"]
    settings = {"type": "autoregressive", "scheduled_sampling": "linear", "micro_batch_size": 3, **keys}
    return make_trainer(folder, parts, **settings)


def reference_loss(model: Any, batch: Any, keys: list[int], probability: float, seed: int) -> torch.Tensor:
    """The mean loss of padded rows with scheduled sampling, one row and one token at a time."""
    total, count = torch.zeros(()), 0
    for row, key in enumerate(keys):
        size = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :size]
        numbers = uniform(torch.tensor([key]), size, seed=seed, stream=4)[0]
        with torch.no_grad():
            likeliest = model(ids[None]).logits[0].argmax(-1)
        fed = ids.clone()
        for t in range(1, size):
            if numbers[t] < probability:
                fed[t] = likeliest[t - 1]  # what the tokens before t make most likely at t
        logits = model(fed[None]).logits[0]
        total = total + cross_entropy(logits[:-1], ids[1:], reduction="sum")
        count += size - 1
    return total / count


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_loss_and_gradient_are_those_of_a_plain_loop(tmp_path: Path, probability: float) -> None:
    trainer = make(tmp_path, sampling_probability=probability, sampling_steps=2)
    trainer.progress.step = 2  # the end of the schedule
    model, seen = trainer.model.module, 0
    for batch in trainer.train_batches:
        rows = trainer.train_loader.rank_indices(trainer.progress.sample_index)
        expected = reference_loss(model, batch, list(rows)[: len(batch["labels"])], probability, trainer.config.seed)
        count = int((batch["labels"] != -100).sum())
        expected = expected * count / batch["num_items_in_batch"]
        gradients = torch.autograd.grad(expected, list(model.parameters()))
        loss, actual = loss_and_gradients(trainer, batch)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for got, gradient in zip(actual, gradients, strict=True):
            assert torch.allclose(got, gradient, atol=1e-5 * float(gradient.abs().max() + 1e-3))
        fed = trainer.with_predictions(batch, probability)["input_ids"]
        assert torch.equal(fed[:, 0], batch["input_ids"][:, 0])  # nothing predicts the first token
        padding = batch["attention_mask"] == 0
        assert torch.equal(fed[padding], batch["input_ids"][padding])
        trainer.progress.sample_index += trainer.train_loader.stride
        seen += 1
    assert seen >= 4
    trainer.close()


def test_every_document_of_a_packed_row_is_predicted_by_itself(tmp_path: Path) -> None:
    trainer = make(tmp_path, data={"pack_samples": True}, sampling_probability=1, sampling_steps=1)
    trainer.progress.step = 1
    batch = next(iter(trainer.train_batches))
    fed, bounds = trainer.with_predictions(batch, 1.0)["input_ids"][0], batch["cu_seq_lens_q"].tolist()
    documents = [slice(*pair) for pair in pairwise(bounds)]
    assert len(documents) > 2
    for document in documents:
        ids = batch["input_ids"][0, document]
        if (batch["labels"][0, document] == -100).all():
            assert torch.equal(fed[document], ids)  # padding, or a document of one token
            continue
        with torch.no_grad():
            likeliest = trainer.model.module.eval()(ids[None]).logits[0].argmax(-1)
        assert fed[document].tolist() == [int(ids[0]), *likeliest[:-1].tolist()]
    trainer.close()


def test_the_first_step_evaluation_and_no_schedule_feed_the_text(tmp_path: Path) -> None:
    trainer = make(tmp_path, data={"train_eval_split": [0.7, 0.3]}, sampling_probability=1, sampling_steps=1)
    batch = next(iter(trainer.train_batches))
    plain = trainer.model.module(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).loss
    count = int((batch["labels"] != -100).sum())
    assert trainer.loss(batch).item() == pytest.approx(plain.item() * count / batch["num_items_in_batch"], rel=1e-5)
    trainer.progress.step = 1
    assert trainer.loss(batch).item() != pytest.approx(plain.item() * count / batch["num_items_in_batch"], rel=1e-3)
    before = trainer.evaluate()["loss/eval"]
    trainer.config.scheduled_sampling = "none"
    assert trainer.evaluate()["loss/eval"] == before
    assert trainer.loss(batch).item() == pytest.approx(plain.item() * count / batch["num_items_in_batch"], rel=1e-5)
    trainer.close()


def test_predictions_are_made_without_dropout_and_use_no_random_generator(tmp_path: Path) -> None:
    dropout = {"hf_config_kwargs": {"attention_dropout": 0.5}}
    trainer = make(tmp_path, model=dropout, sampling_probability=1, sampling_steps=1)
    trainer.progress.step = 1
    batch, state = next(iter(trainer.train_batches)), torch.get_rng_state()
    first, second = (trainer.with_predictions(batch, 1.0)["input_ids"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert trainer.model.module.training and all(part.training for part in trainer.model.module.modules())
    trainer.close()


def test_the_cut_of_the_batch_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for number, (micro, accumulation) in enumerate([(4, 1), (1, 4), (2, 2)]):
        trainer = make(
            tmp_path,
            sampling_probability=0.5,
            sampling_steps=2,
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            output_dir=str(tmp_path / f"run_{number}"),
        )
        weights.append(train(trainer))
    for other in weights[1:]:
        for name, weight in weights[0].items():
            assert torch.allclose(other[name], weight, atol=1e-6), name


def test_answers_of_chats_are_replaced_too(tmp_path: Path) -> None:
    tiny.save_chats(tmp_path / "chats.jsonl", 6)
    chats = {"type": "sft", "sources": [str(tmp_path / "chats.jsonl")], "max_length": 400}
    trainer = make(tmp_path, data=chats, sampling_probability=1, sampling_steps=1)
    trainer.progress.step = 1
    batch = next(iter(trainer.train_batches))
    fed, prompt = trainer.with_predictions(batch, 1.0)["input_ids"], batch["labels"] == -100
    assert torch.equal(fed[prompt], batch["input_ids"][prompt])
    assert not torch.equal(fed[~prompt], batch["input_ids"][~prompt])
    trainer.close()


def test_two_processes_that_share_a_sequence_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="sequence_parallel_size"):
        make(tmp_path, sequence_parallel_size=2)
