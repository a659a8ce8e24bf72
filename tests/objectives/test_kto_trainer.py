"""KTO on a tiny model: its loss and gradient by another way, and that no cut or layout changes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import processes
from tests.loss.test_kto import trl_losses
from tests.objectives import tiny_runs
from tests.objectives.kto_runs import make_trainer, train
from tests.trainer.weights import moved, same


def log_probs(model: Any, samples: list[Any], prefix: str = "") -> Tensor:
    """Log-probabilities of completions one by one, from all logits."""
    sums = []
    for sample in samples:
        ids, labels = (torch.tensor(sample[f"{prefix}{name}"].tolist()) for name in ("input_ids", "labels"))
        table = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        is_label = labels[1:] != -100
        sums.append(table[:-1][is_label].gather(1, labels[1:][is_label][:, None]).sum())
    return torch.stack(sums)


def first_batch(trainer: Any) -> Any:
    trainer.train_loader.seek(0, 0)
    batch = next(iter(trainer.train_loader))
    batch = {**batch, "num_items_in_batch": float(trainer.targets(batch))}
    trainer.window = type(trainer.window)([batch], trainer.targets(batch))
    return batch


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_the_loss_and_its_gradient_by_another_way(tmp_path: Path, loss_type: Any, pack: bool) -> None:
    keys = {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.5}
    trainer = moved(
        make_trainer(tmp_path, loss_type=loss_type, micro_batch_size=7, data={"pack_samples": pack}, **keys)
    )
    batch = first_batch(trainer)
    samples = [trainer.train_loader.dataset[n] for n in trainer.train_loader.samples(0, 0)]
    policy, reference = trainer.model.module, trainer.engines["ref_model"].module
    parameters = [*policy.parameters()]
    loss, gradients = tiny_runs.loss_and_gradients(trainer, batch)
    with torch.no_grad():
        of_reference = log_probs(reference, samples)
        mismatched = log_probs(policy, samples, "mismatched_") - log_probs(reference, samples, "mismatched_")
    kl = mismatched.mean().clamp(min=0)
    assert kl > 0.01
    is_liked = torch.tensor([sample["label"] for sample in samples])
    expected = trl_losses(loss_type, log_probs(policy, samples) - of_reference, is_liked, kl, 0.5, (1.3, 0.7)).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    metrics = trainer.metrics.compute(lambda numbers: numbers)
    if loss_type == "kto":
        assert metrics["kl"] == pytest.approx(kl.item(), abs=1e-5)
    of_policy = log_probs(policy, samples).detach()
    assert metrics["logps/chosen"] == pytest.approx(of_policy[is_liked].mean().item(), rel=1e-5)
    rewards = 0.5 * (of_policy - of_reference)
    assert metrics["rewards/rejected"] == pytest.approx(rewards[~is_liked].mean().item(), rel=1e-4)
    trainer.close()


def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path) -> None:
    """Seven rows: the last window of an epoch is short, and one of its micro-batches too."""
    expected = train(str(tmp_path), micro_batch_size=4)
    for micro, accumulate, pack in ((2, 2, True), (1, 4, True), (4, 1, False)):
        data = {"pack_samples": pack}
        same(expected, train(str(tmp_path), micro_batch_size=micro, gradient_accumulation_steps=accumulate, data=data))


def test_an_evaluation_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    evaluations = []
    for micro in (7, 2, 1):
        data = {"eval_sources": [str(tmp_path / "rated.jsonl")]}
        trainer = moved(make_trainer(tmp_path, micro_batch_size=micro, data=data))
        evaluations += [trainer.evaluate(), trainer.evaluate()]
        trainer.close()
    expected = evaluations[0]
    assert expected["kl/eval"] > 0
    assert expected.keys() == {
        f"{name}/eval"
        for name in ("loss", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    }
    for cut in evaluations[1:]:
        assert cut == pytest.approx(expected, rel=1e-5)


def evaluate(folder: Path, *names: str, **data: Any) -> dict[str, float]:
    """Evaluates on files of the first rows of the run's own, in another order each."""
    rows = (folder / "rated.jsonl").read_text().splitlines(keepends=True)
    for name in names:
        (folder / f"{name}.jsonl").write_text("".join(rows[3:] if name == "late" else rows[:4]))
    files = [str(folder / f"{name}.jsonl") for name in names]
    trainer = moved(make_trainer(folder, micro_batch_size=2, data={"eval_sources": files, **data}))
    values: dict[str, float] = trainer.evaluate()
    trainer.close()
    return values


def test_each_evaluation_set_has_the_loss_of_its_own_rows(tmp_path: Path) -> None:
    make_trainer(tmp_path).close()  # saves the files
    alone = [evaluate(tmp_path, name) for name in ("early", "late")]
    both = evaluate(tmp_path, "early", "late")
    for name, values in zip(("early", "late"), alone, strict=True):
        assert {key: both[f"{key.rpartition('/')[0]}/{name}"] for key in values} == pytest.approx(values, rel=1e-5)
    assert both["loss/early"] != pytest.approx(both["loss/late"], rel=1e-3)


def test_a_share_of_several_sources_has_the_loss_of_all_its_rows(tmp_path: Path) -> None:
    make_trainer(tmp_path).close()
    evaluate(tmp_path, "early", "late")  # saves the files
    data = {"sources": [str(tmp_path / f"{name}.jsonl") for name in ("early", "late")], "train_eval_split": [0.3, 0.7]}
    trainer = moved(make_trainer(tmp_path, micro_batch_size=2, loss_type="apo_zero_unpaired", data=data))
    values = trainer.evaluate()
    sizes = {name: len(loader.dataset) for name, loader in trainer.eval_loaders.items()}
    trainer.close()
    assert sizes.keys() == {"eval/early", "eval/late"}
    total = sum(size * values[f"loss/{name}"] for name, size in sizes.items())
    assert values["loss/eval"] == pytest.approx(total / sum(sizes.values()), rel=1e-5)
    assert values["loss/eval/early"] != pytest.approx(values["loss/eval/late"], rel=1e-3)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """The second has no row of the last global batch."""
    keys: dict[str, Any] = {"data": {"sources": [{"name_or_path": "", "split": "train[:5]"}]}}
    keys["data"]["sources"][0]["name_or_path"] = str(tmp_path / "rated.jsonl")
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}
    keys |= {"micro_batch_size": 2, "deepspeed": block}
    for once in (False, True):  # the reference is asked in every step, or before the first
        for part in processes.share(train, 2, str(tmp_path), precompute_ref_log_probs=once, **keys):
            same(expected, part)


def test_the_policy_learns_to_tell_them_apart(tmp_path: Path) -> None:
    adam = {"type": "adamw", "lr": 3e-3, "weight_decay": 0}
    trainer = make_trainer(tmp_path, micro_batch_size=7, train_iters=40, optimizer=adam)
    trainer.train()
    with torch.no_grad():
        trainer.loss(first_batch(trainer))
    metrics = trainer.metrics.compute(lambda numbers: numbers)
    assert metrics["rewards/chosen"] > 0.5 > -0.5 > metrics["rewards/rejected"]
    trainer.close()
