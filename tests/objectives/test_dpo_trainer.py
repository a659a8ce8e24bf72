"""Preference training on a tiny model: its loss and gradient by another way, whatever the cut, layout or adapter."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.objectives.dpo_runs import first_batch, make_trainer, save_files, train
from tests.objectives.plain import plain_copy, require_same_loss, token_log_probs
from tests.trainer.weights import moved, same


def plain_log_probs(model: Any, samples: list[Any], kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and lengths of completions one by one, from all logits."""
    tokens = [plain_token_log_probs(model, sample, kind) for sample in samples]
    return torch.stack([one.sum() for one in tokens]), torch.tensor([len(one) for one in tokens])


def plain_token_log_probs(model: Any, sample: Any, kind: str) -> torch.Tensor:
    ids, labels = sample[f"{kind}input_ids"].tolist(), sample[f"{kind}labels"].tolist()
    start = next(n for n, label in enumerate(labels) if label != -100)
    assert labels[start:] == ids[start:]
    return token_log_probs(model, ids[:start], ids[start:])[0]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "simpo", "orpo"])
def test_the_loss_and_its_gradient_by_another_way(tmp_path: Path, loss_type: str, pack: bool) -> None:
    trainer = moved(
        make_trainer(tmp_path, loss_type=loss_type, sft_weight=0.5, micro_batch_size=7, data={"pack_samples": pack})
    )
    batch = first_batch(trainer)
    samples = [trainer.train_loader.dataset[n] for n in trainer.train_loader.samples(0, 0)]
    policy, without_reference = plain_copy(trainer.model.module), loss_type in ("simpo", "orpo")
    assert ("ref_model" in trainer.engines) != without_reference
    (c, cn), (r, rn) = plain_log_probs(policy, samples, ""), plain_log_probs(policy, samples, "rejected_")
    if loss_type == "simpo":
        losses = -torch.nn.functional.logsigmoid(0.1 * (c / cn - r / rn) - 0.5)
    elif loss_type == "orpo":
        odds = [p / (1 - p) for p in ((c / cn).exp(), (r / rn).exp())]
        losses = -0.1 * torch.nn.functional.logsigmoid((odds[0] / odds[1]).log())
    else:
        with torch.no_grad():
            reference = plain_copy(trainer.engines["ref_model"].module)
            (rc, _), (rr, _) = plain_log_probs(reference, samples, ""), plain_log_probs(reference, samples, "rejected_")
        h = 0.1 * ((c - rc) - (r - rr))
        losses = (1 - h).clamp(min=0) if loss_type == "hinge" else torch.log1p(torch.exp(-h))
        if loss_type == "ipo":
            losses = ((c - rc) / cn - (r - rr) / rn - 5).square()
    require_same_loss(trainer, trainer.loss(batch), losses.mean() - 0.5 * c.sum() / cn.sum(), policy)
    trainer.close()


SUM: dict[str, Any] = {
    "loss_type": ["ipo", "sigmoid"],
    "loss_weights": [0.3, 1.5],
    "f_divergence_type": "forward_kl",
    "ld_alpha": 0.4,
    "sft_weight": 0.7,
}


@pytest.mark.parametrize("pack", [True, False])
def test_a_sum_of_losses_by_another_way(tmp_path: Path, pack: bool) -> None:
    """Another divergence, the tokens by which a completion is longer weighted, and the cross-entropy of all of them."""
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, data={"pack_samples": pack}, **SUM))
    batch = first_batch(trainer)
    policy, reference = plain_copy(trainer.model.module), plain_copy(trainer.engines["ref_model"].module)
    losses, nll, count = [], torch.zeros(()), 0
    for sample in (trainer.train_loader.dataset[n] for n in trainer.train_loader.samples(0, 0)):
        tokens = [plain_token_log_probs(policy, sample, kind) for kind in ("", "rejected_")]
        with torch.no_grad():
            before = [plain_token_log_probs(reference, sample, kind) for kind in ("", "rejected_")]
        short = min(map(len, tokens))
        c, r = (
            1 - torch.exp((old - new)[:short].sum() + 0.4 * (old - new)[short:].sum())
            for new, old in zip(tokens, before, strict=True)
        )
        ipo = (c / len(tokens[0]) - r / len(tokens[1]) - 5).square()
        losses.append(0.3 * ipo + 1.5 * torch.log1p(torch.exp(-0.1 * (c - r))))
        nll, count = nll - tokens[0].sum(), count + len(tokens[0])
    expected = torch.stack(losses).mean() + 0.7 * nll / count
    require_same_loss(trainer, trainer.loss(batch), expected, policy)
    trainer.close()


def test_metrics_are_means_over_pairs(tmp_path: Path) -> None:
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7))
    batch = first_batch(trainer)
    with torch.no_grad():
        trainer.loss(batch)
        policy = trainer.log_probs(trainer.model, batch)
    metrics = trainer.metrics.compute(lambda numbers: numbers)
    assert metrics["logps/chosen"] == pytest.approx(policy.chosen.mean().item(), rel=1e-6)
    assert metrics["margin"] == pytest.approx(metrics["rewards/chosen"] - metrics["rewards/rejected"], rel=1e-5)
    assert 0 <= metrics["accuracy"] <= 1
    assert metrics.keys() == {
        "accuracy",
        "margin",
        *(f"{a}/{b}" for a in ("rewards", "logps") for b in ("chosen", "rejected")),
    }
    trainer.close()


def test_a_policy_with_dropout_begins_as_its_reference(tmp_path: Path) -> None:
    rate = {"hf_config_kwargs": {"attention_dropout": 0.5}}
    trainer = make_trainer(tmp_path, micro_batch_size=7, model=rate)
    assert trainer.loss(first_batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-6)
    assert trainer.model.module.training
    trainer.close()
    trainer = make_trainer(tmp_path, micro_batch_size=7, model=rate, disable_dropout=False)
    assert trainer.loss(first_batch(trainer)).item() != pytest.approx(math.log(2), abs=1e-4)
    trainer.close()


BOUNDED = {**SUM, "f_divergence_type": "js_divergence", "beta": 0.5}
"""The scores of the forward KL grow exponentially, and so would the rounding errors of several steps."""


@pytest.mark.parametrize("keys", [{"sft_weight": 0.7}, {"loss_type": "ipo", "beta": 0.5}, BOUNDED])
def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Seven pairs: the last window of an epoch is short, and one of its micro-batches too."""
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    for micro, accumulate, pack in ((2, 2, True), (1, 4, True), (4, 1, False)):
        data = {"pack_samples": pack}
        same(
            expected,
            train(str(tmp_path), micro_batch_size=micro, gradient_accumulation_steps=accumulate, data=data, **keys),
        )


def test_an_evaluation_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    evaluations = []
    for micro in (7, 2, 1):
        data = {"eval_sources": [str(tmp_path / "pairs.jsonl")]}
        trainer = moved(make_trainer(tmp_path, sft_weight=0.7, micro_batch_size=micro, data=data))
        evaluations.append(trainer.evaluate())
        trainer.close()
    expected = evaluations[0]
    assert expected["loss/eval"] > 0.7 * expected["nll/eval"] > 0
    for cut in evaluations[1:]:
        assert cut == pytest.approx(expected, rel=1e-5)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """The second has no row of the last global batch."""
    keys: dict[str, Any] = {"sft_weight": 0.7, "data": {"sources": [{"name_or_path": "", "split": "train[:5]"}]}}
    keys["data"]["sources"][0]["name_or_path"] = str(tmp_path / "pairs.jsonl")
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}
    for part in processes.share(train, 2, str(tmp_path), micro_batch_size=2, deepspeed=block, **keys):
        same(expected, part)


LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def test_the_reference_of_an_adapter_is_the_model_without_it(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    alone = moved(make_trainer(tmp_path, model={"peft_config": LORA}, micro_batch_size=7))
    apart = {"ref_model": save_files(tmp_path)["model"], "output_dir": str(tmp_path / "beside")}
    beside = moved(make_trainer(tmp_path, model={"peft_config": LORA}, micro_batch_size=7, **apart))
    assert "ref_model" not in alone.engines
    assert "ref_model" in beside.engines
    batch = first_batch(alone)
    assert alone.loss(batch).item() == pytest.approx(beside.loss(batch).item(), abs=1e-6)
    assert alone.loss(batch).item() != pytest.approx(0.6931, abs=1e-3)  # the adapter does something
    assert all(parameter.requires_grad for name, parameter in alone.model.module.named_parameters() if "lora" in name)
    alone.close()
    beside.close()
    same(
        train(str(tmp_path), model={"peft_config": LORA}, micro_batch_size=4),
        train(str(tmp_path), model={"peft_config": LORA}, ref_model=save_files(tmp_path)["model"], micro_batch_size=4),
    )


def test_the_model_below_an_adapter_trains_too(tmp_path: Path) -> None:
    """Its dropout, and activation checkpointing, which asks each layer for its mode; what a part is set to stays."""
    pytest.importorskip("peft")
    trainer = make_trainer(tmp_path, model={"peft_config": LORA}, micro_batch_size=7)
    parts = [*trainer.model.module.modules()]
    assert all(part.training for part in parts)
    parts[-1].eval()
    modes = [part.training for part in parts]
    trainer.loss(first_batch(trainer))
    assert [part.training for part in parts] == modes
    trainer.close()
    trainer = make_trainer(tmp_path, micro_batch_size=7)
    assert not any(part.training for part in trainer.engines["ref_model"].module.modules())
    trainer.close()


def test_the_reference_stays_and_the_policy_learns(tmp_path: Path) -> None:
    adam = {"type": "adamw", "lr": 3e-3, "weight_decay": 0}
    trainer = make_trainer(tmp_path, micro_batch_size=7, train_iters=80, optimizer=adam, sft_weight=1)
    before = {name: one.clone() for name, one in trainer.engines["ref_model"].module.named_parameters()}
    batch = first_batch(trainer)
    start = trainer.loss(batch).item()
    trainer.metrics.compute(lambda numbers: numbers)
    trainer.train()
    trainer.metrics.compute(lambda numbers: numbers)
    with torch.no_grad():
        assert trainer.loss(batch).item() < start / 2
    assert trainer.metrics.compute(lambda numbers: numbers)["accuracy"] == 1
    after = dict(trainer.engines["ref_model"].module.named_parameters())
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    trainer.close()


def test_drawn_weights_have_themselves_as_reference(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model={"random_weights": True})
    pairs = zip(trainer.model.module.parameters(), trainer.engines["ref_model"].module.parameters(), strict=True)
    assert all(torch.equal(policy, reference) for policy, reference in pairs)
    trainer.close()
