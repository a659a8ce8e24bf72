"""Distillation from what the teacher predicted before training: the same as beside the teacher, and its refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.engine.zero import full_gradient
from arctic_training.errors.types import ModelError, RecipeError
from arctic_training.objectives import precomputed
from arctic_training.testing import check_resume
from tests import processes, tiny
from tests.objectives.test_distill_trainer import OPTIONS, make_recipe, make_trainer, train

VOCABULARY = 320


def data(folder: Path, **keys: Any) -> dict[str, Any]:
    chats = folder / "chats.jsonl"
    if not chats.exists():
        tiny.save_chats(chats, 8)
    sources = {"sources": [str(chats)], "eval_sources": [str(chats)]}
    return {**sources, "max_length": 400, "cache_dir": str(folder / "cache"), "pack_samples": False, **keys}


def loss_and_gradients(trainer: Any, batch: Any) -> tuple[float, list[torch.Tensor | None]]:
    loss = trainer.loss({**batch, "num_items_in_batch": 7.0})
    trainer.model.set_gradient_accumulation_boundary(True)
    trainer.model.backward(loss)
    gradients = [full_gradient(one) for one in trainer.model.module.parameters()]
    trainer.close()
    return loss.item(), gradients


@pytest.mark.parametrize(
    ("name", "packs"), [("forward", False), ("forward", True), ("reverse", True), ("jensen_shannon", False)]
)
def test_the_whole_vocabulary_is_the_teacher_in_memory(tmp_path: Path, name: str, packs: bool) -> None:
    keys = {**OPTIONS[name], "hidden_weight": 0, "data": data(tmp_path, pack_samples=packs), "micro_batch_size": 3}
    results = []
    for k in (0, VOCABULARY):
        trainer = make_trainer(tmp_path, **keys, teacher_top_k=k)
        assert set(trainer.engines) == ({"model"} if k else {"model", "teacher"})
        trainer.train_loader.seek(1, 0)  # in an order that is not that of the samples
        batch: Any = next(iter(trainer.train_loader))
        assert ("teacher_ids" in batch) == bool(k)
        results.append(loss_and_gradients(trainer, batch))
    (expected, exact), (loss, gradients) = results
    assert loss == pytest.approx(expected, rel=1e-5)
    for own, other in zip(gradients, exact, strict=True):
        assert own is not None and other is not None
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_a_few_tokens_are_those_of_the_teacher_itself(tmp_path: Path) -> None:
    """Computed apart: transformers' logits in float64, a label at a time."""
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(tmp_path, data=data(tmp_path), teacher_top_k=5, temperature=2.0)
    student, teacher = (AutoModelForCausalLM.from_pretrained(tmp_path / one).double() for one in ("model", "teacher"))
    trainer.train_loader.seek(2, 0)
    batch: Any = next(iter(trainer.train_loader))
    total, place = 0.0, 0
    with torch.no_grad():
        z, t = (
            one(batch["input_ids"], attention_mask=batch["attention_mask"]).logits / 2 for one in (student, teacher)
        )
        for row, column in (batch["labels"][:, 1:] != -100).nonzero().tolist():
            p, q = t[row, column].softmax(-1), z[row, column].softmax(-1)
            best = p.argsort(descending=True)[:5]
            assert set(batch["teacher_ids"][place].tolist()) == set(best.tolist())
            outcomes = [(p[n], q[n]) for n in best] + [(1 - p[best].sum(), 1 - q[best].sum())]
            total += sum(float(a * (a / b).log()) for a, b in outcomes)
            place += 1
        loss = trainer.loss({**batch, "num_items_in_batch": 1.0})
    assert place == len(batch["teacher_ids"]) and loss.item() == pytest.approx(4 * total, rel=1e-5)
    trainer.close()


@pytest.mark.parametrize("stage", [1, 3])
def test_two_processes_are_one(tmp_path: Path, stage: int) -> None:
    """The last batch of an evaluation has rows for one of them only."""
    keys = {"data": data(tmp_path, max_length=399), "teacher_top_k": 4, "micro_batch_size": 6}
    expected, before = train(str(tmp_path), **keys)
    keys |= {"micro_batch_size": 3, "deepspeed": {"gradient_clipping": 0, "zero_optimization": {"stage": stage}}}
    for weights, values in processes.share(train, 2, str(tmp_path), **keys):
        assert values == pytest.approx(before, rel=1e-5)
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-6, msg=name)


def test_it_is_computed_once_and_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    compute = precomputed.compute_columns

    def count(*args: Any) -> Any:
        passes.append(len(args[-1].dataset))
        return compute(*args)

    monkeypatch.setattr(precomputed, "compute_columns", count)
    keys = {"data": data(tmp_path), "teacher_top_k": 4, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    assert check_resume(make_recipe(tmp_path, **keys)) == 2
    assert passes == [8]  # the samples of evaluation are those of training
    make_trainer(tmp_path, **{**keys, "teacher_top_k": 5}).close()
    make_trainer(tmp_path, **keys, temperature=2.0).close()
    assert passes == [8, 8, 8]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"hidden_weight": 1}, "the hidden states of the teacher are not kept; remove hidden_weight"),
        ({"on_policy_share": 0.5}, "the completions are not known before training; remove on_policy_share"),
        ({"sequence_parallel_size": 2}, "the labels of a sample are on one rank; remove sequence_parallel_size"),
    ],
)
def test_what_needs_the_teacher_is_refused(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=f"teacher_top_k: {reason}"):
        make_trainer(tmp_path, teacher_top_k=4, **keys)


def test_more_tokens_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"teacher_top_k: {VOCABULARY + 1}; the vocabulary has {VOCABULARY} tokens"):
        make_trainer(tmp_path, teacher_top_k=VOCABULARY + 1)
