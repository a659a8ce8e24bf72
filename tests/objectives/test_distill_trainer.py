"""Distillation: its loss and gradients are torch's own over all labels of a window, at any cut and ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.distributed import process_group
from arctic_training.engine.zero import full_gradient, full_parameter
from arctic_training.errors.types import ModelError, RecipeError
from arctic_training.objectives.distill import DistillTrainer
from arctic_training.objectives.on_policy import use_own_completions
from arctic_training.testing import check_resume
from arctic_training.trainer.window import AccumulationWindow
from tests import processes, tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "forward": {"temperature": 2.0},
    "reverse": {"divergence": "reverse", "ce_weight": 0.5},
    "jensen_shannon": {"divergence": "jensen_shannon", "mixture": 0.3, "hidden_weight": 0.2, "ce_weight": 0.1},
}


def make_recipe(folder: Path, **keys: Any) -> dict[str, Any]:
    for name, seed in (("model", 0), ("teacher", 1)):
        if not (folder / name).exists():
            tiny.save_model(folder / name, seed=seed, initializer_range=0.2)
    chats = folder / "chats.jsonl"
    if not chats.exists():
        tiny.save_chats(chats, 8)
    return {
        "type": "distill",
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "teacher": {"name_or_path": str(folder / "teacher"), "dtype": "fp32"},
        "data": {"sources": [str(chats)], "eval_sources": [str(chats)], "max_length": 400, "pack_samples": False},
        "optimizer": {"type": "sgd", "lr": 0.1},
        "scheduler": {"name": "constant"},
        "deepspeed": {"gradient_clipping": 0},
        "micro_batch_size": 4,
        "train_iters": 2,
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
        **keys,
    }


def make_trainer(folder: Path, **keys: Any) -> DistillTrainer:
    return DistillTrainer(get_config(make_recipe(folder, **keys)))


def plain_loss(student: Any, teacher: Any, batch: Any, **options: Any) -> torch.Tensor:
    """The sum over all labels, by torch's own functions of full logits in float64."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        right = teacher(**inputs)
    own = student(**inputs)
    is_label = batch["labels"][:, 1:] != -100
    labels = batch["labels"][:, 1:][is_label]
    z, t = own.logits[:, :-1][is_label], right.logits[:, :-1][is_label]
    heat, kl = options.get("temperature", 1.0), torch.nn.functional.kl_div
    log_q, log_p = (z / heat).log_softmax(-1), (t / heat).log_softmax(-1)
    kind, weight = options.get("divergence", "forward"), options.get("mixture", 0.5)
    if kind == "jensen_shannon":
        log_m = (weight * log_p.exp() + (1 - weight) * log_q.exp()).log()
        parts = ((weight, log_m, log_p), (1 - weight, log_m, log_q))
    else:
        parts = ((1.0, log_q, log_p),) if kind == "forward" else ((1.0, log_p, log_q),)
    loss = sum(w * kl(base, target, log_target=True, reduction="sum") for w, base, target in parts) * heat**2
    loss = loss + options.get("ce_weight", 0) * torch.nn.functional.cross_entropy(z, labels, reduction="sum")
    hidden = own.hidden_states[-1][:, :-1][is_label] - right.hidden_states[-1][:, :-1][is_label]
    return loss + options.get("hidden_weight", 0) * hidden.square().mean(-1).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_are_those_of_torch(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(tmp_path, **OPTIONS[name])
    student, teacher = (AutoModelForCausalLM.from_pretrained(tmp_path / one).double() for one in ("model", "teacher"))
    trainer.eval_loaders["eval"].seek(0, 0)
    batch: Any = next(iter(trainer.eval_loaders["eval"]))
    assert (batch["labels"] != -100).sum(1).unique().numel() > 1  # rows with other numbers of labels, and padding
    expected = plain_loss(student, teacher, batch, **OPTIONS[name])
    expected.backward()
    loss = trainer.loss({**batch, "num_items_in_batch": 1.0})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trainer.model.set_gradient_accumulation_boundary(True)
    trainer.model.backward(loss)
    for own, (key, one) in zip(trainer.model.module.parameters(), student.named_parameters(), strict=True):
        gradient, exact = full_gradient(own), one.grad.float()
        torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item(), msg=key)
    trainer.close()


def train(folder: str, **keys: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    trainer = make_trainer(Path(folder), **keys)
    values = trainer.evaluate()
    trainer.train()
    weights = {name: full_parameter(one).clone() for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return weights, values


@pytest.mark.parametrize(
    ("world", "packs", "keys"),
    [
        (1, False, {"micro_batch_size": 1, "gradient_accumulation_steps": 4}),
        (2, False, {"micro_batch_size": 2, "deepspeed": {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}}),
        (2, True, {"micro_batch_size": 2, "sequence_parallel_size": 2}),
    ],
)
def test_the_cut_of_the_global_batch_changes_nothing(
    tmp_path: Path, world: int, packs: bool, keys: dict[str, Any]
) -> None:
    chats = [str(tmp_path / "chats.jsonl")]
    data = {"sources": chats, "eval_sources": chats, "max_length": 400, "pack_samples": packs}
    options = {**OPTIONS["jensen_shannon"], "data": data}
    expected, before = train(str(tmp_path), **options, **({"micro_batch_size": 2} if packs else {}))
    for weights, values in processes.share(train, world, str(tmp_path), **options, **keys):
        assert values == pytest.approx(before, rel=1e-5)
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-6, msg=name)


def train_on_policy(folder: str, **keys: Any) -> tuple[list[list[int]], dict[str, torch.Tensor], list[float]]:
    """Trains on-policy; returns the rows of the last such window, in order, the weights, and the choices."""
    trainer = make_trainer(Path(folder), **{"on_policy_share": 0.3, "max_new_tokens": 6, "train_iters": 6, **keys})
    choices, rows = list[float](), list[list[int]]()

    def keep(trainer: Any) -> None:
        choices.append(float(trainer._is_on_policy))
        if trainer._is_on_policy:
            batches = trainer.window.batches
            rows[:] = [one[one != 0].tolist() for batch in batches for one in batch["input_ids"]]
            items = sum(batch["num_items_in_batch"] for batch in batches)
            assert items * process_group.world_size() == pytest.approx(trainer.window.targets)
            if process_group.world_size() == 1:
                labels = torch.cat([batch["labels"][:, 1:].flatten() for batch in batches])
                assert trainer.window.targets == (labels != -100).sum()

    trainer.listen("pre-after_update", keep)
    trainer.train()
    weights = {name: full_parameter(one).clone() for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return rows, weights, choices


@pytest.mark.parametrize(
    ("world", "keys"),
    [
        (1, {"micro_batch_size": 1, "gradient_accumulation_steps": 4}),
        (2, {"micro_batch_size": 2, "deepspeed": {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}}),
    ],
)
def test_the_students_own_completions_do_not_depend_on_the_cut(
    tmp_path: Path, world: int, keys: dict[str, Any]
) -> None:
    rows, expected, choices = train_on_policy(str(tmp_path))
    assert {0.0, 1.0} == set(choices)
    parts = processes.share(train_on_policy, world, str(tmp_path), **keys)
    assert [row for part in parts for row in part[0]] == rows
    for _, weights, own_choices in parts:
        assert own_choices == choices
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-6, msg=name)


def test_on_policy_steps_resume_to_the_bit(tmp_path: Path) -> None:
    keys = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "on_policy_share": 0.6, "max_new_tokens": 6}
    assert check_resume(make_recipe(tmp_path, **keys)) == 2


def test_a_prompt_that_leaves_no_room_keeps_its_answer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, on_policy_share=1, max_new_tokens=399)
    trainer.eval_loaders["eval"].seek(0, 0)
    batch: Any = next(iter(trainer.eval_loaders["eval"]))
    trainer.window = AccumulationWindow([batch])
    use_own_completions(trainer, trainer.eos_token_ids, 399)
    (kept,) = trainer.window.batches
    assert all(torch.equal(kept[name], batch[name]) for name in ("input_ids", "labels", "attention_mask"))
    trainer.close()


def test_on_policy_needs_prompts_in_rows_of_their_own(tmp_path: Path) -> None:
    make_trainer(tmp_path).close()
    chats = {"sources": [str(tmp_path / "chats.jsonl")], "max_length": 400}
    with pytest.raises(RecipeError, match="on_policy_share: an answer is replaced in rows of one sample"):
        make_trainer(tmp_path, on_policy_share=0.5, data={**chats, "pack_samples": True})
    with pytest.raises(RecipeError, match="on_policy_share: texts have no prompts"):
        make_trainer(tmp_path, on_policy_share=0.5, data={**chats, "type": "causal"})


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).close()
    wide = tiny.save_model(tmp_path / "wide", hidden_size=64)
    section = {"name_or_path": str(wide), "dtype": "fp32"}
    make_trainer(tmp_path, teacher=section).close()
    with pytest.raises(
        ModelError, match=r"hidden_weight: the hidden states of the teacher have 64 numbers, .* student 32"
    ):
        make_trainer(tmp_path, teacher=section, hidden_weight=1)
    section["name_or_path"] = str(tiny.save_model(tmp_path / "more", vocab_size=384))
    with pytest.raises(
        ModelError, match=r"teacher.name_or_path: its vocabulary has 384 tokens, and that of model has 320"
    ):
        make_trainer(tmp_path, teacher=section)


def test_a_mixture_belongs_to_one_divergence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="mixture: is for divergence: jensen_shannon; remove it"):
        make_trainer(tmp_path, mixture=0.3)


def test_the_student_becomes_the_teacher(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, optimizer={"lr": 3e-3}, train_iters=60, micro_batch_size=8, scheduler={})
    before = trainer.evaluate()["divergence/eval"]
    trainer.train()
    assert trainer.evaluate()["divergence/eval"] < 0.5 * before
    trainer.close()
