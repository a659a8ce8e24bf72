"""Runs that split their batches otherwise, also by sequences, log the same losses, rates, metrics and completions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.distributed import process_group
from arctic_training.errors.types import RecipeError, TrainingError
from arctic_training.registry import lookup
from arctic_training.trainer.throughput import MEASURED
from tests import processes
from tests.contract.cases import recipe


def settings_of(name: str, root: str, run: str, **more: Any) -> dict[str, Any]:
    settings = recipe(name, Path(root) / "files", output_dir=str(Path(root) / run), **more)
    settings["model"]["hf_config_kwargs"] = {}  # no dropout
    data = {"eval_sources": settings["data"]["sources"], **settings["data"]}
    plain = {"data": data, "optimizer": {"type": "sgd", "lr": 0.05}, "gradient_accumulation_steps": 2}
    return settings | plain | more


def train(name: str, root: str, run: str, shared: int, packs: bool, more: dict[str, Any]) -> dict[str, int]:
    process_group.init_process_group()
    if process_group.is_main():
        recipe(name, Path(root) / "files")
    process_group.barrier()
    settings = settings_of(name, root, run, sequence_parallel_size=shared, **more)
    settings["data"]["pack_samples"] = packs
    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()
    progress: dict[str, int] = trainer.progress.state_dict()
    trainer.close()
    process_group.barrier()
    return progress


def records(root: Path, run: str) -> list[dict[str, float]]:
    """Returns what was logged for each step, except what depends on the clock."""
    lines = [json.loads(line) for line in (root / run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("time", *MEASURED)} for line in lines]


def require_same(root: Path, first: str, second: str) -> list[dict[str, float]]:
    """Returns what the second of two runs logged, which equals what the first did."""
    one, two = records(root, first), records(root, second)
    assert len(one) == len(two) >= 20 and one[0]["loss"] != one[-2]["loss"]
    for expected, got in zip(one, two, strict=True):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            if key.startswith("accuracy") and abs(expected.get(key.replace("accuracy", "margin"), 1)) < 1e-4:
                continue  # of margins that are 0 but for rounding
            near = 1e-4 if key.startswith(("grad_norm", "rewards", "margin", "logps")) else 1e-5
            assert got[key] == pytest.approx(value, rel=near, abs=near), f"{key} of {expected}"
    return two


SCHEDULE = {"train_iters": 20, "scheduler": {"name": "linear", "warmup_steps": 2}}
RATES = [0.05 * min(n / 2, (20 - n) / 18) for n in range(20)]
"""Of update n, from 0: up over two, then straight down to 0 after the last."""


@pytest.mark.parametrize(
    ("name", "packs", "more"),
    [
        ("sft", False, {"label_smoothing": 0.1}),
        ("sft", True, {"deepspeed": {"zero_optimization": {"stage": 3}}}),
        pytest.param("causal", True, {}, marks=pytest.mark.fault(16, 31)),
        pytest.param("dpo", True, {"sft_weight": 0.3}, marks=pytest.mark.fault(16, 31)),
        ("dpo", False, {"loss_type": ["ipo", "sigmoid"], "f_divergence_type": "js_divergence", "ld_alpha": 0.4}),
        ("grpo", True, {"normalize": "token", "deepspeed": {"zero_optimization": {"stage": 3}}}),
    ],
)
def test_a_run_of_two_that_share_is_the_run_of_one(
    name: str, packs: bool, more: dict[str, Any], tmp_path: Path
) -> None:
    more = {**SCHEDULE, "eval_interval": 7, "evaluate_last": True, **more}
    if name == "sft":
        more["evaluators"] = [{"type": "generate", "max_new_tokens": 3, "max_samples": 3, "save": False}]
    (alone,) = processes.share(train, 1, name, str(tmp_path), "alone", 1, packs, more)
    for end in processes.share(train, 2, name, str(tmp_path), "shared", 2, packs, more):
        assert end == alone
    lines = require_same(tmp_path, "alone", "shared")
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx(RATES, abs=1e-12)


@pytest.mark.fault(16, 31)
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_twenty_losses_and_rates_do_not_depend_on_the_cut(name: str, tmp_path: Path) -> None:
    uncut = {**SCHEDULE, "micro_batch_size": 4, "gradient_accumulation_steps": 1}
    cut = {**SCHEDULE, "micro_batch_size": 1, "gradient_accumulation_steps": 2}
    (alone,) = processes.share(train, 1, name, str(tmp_path), "whole", 1, False, uncut)
    for end in processes.share(train, 2, name, str(tmp_path), "cut", 1, False, cut):
        assert end == alone
    lines = require_same(tmp_path, "whole", "cut")
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx(RATES, abs=1e-12)


@pytest.mark.fault(31)
def test_the_length_and_the_rates_follow_from_epochs_too(tmp_path: Path) -> None:
    more = {"epochs": 3, "scheduler": {"name": "linear", "warmup_steps": 0}}
    processes.share(train, 2, "sft", str(tmp_path), "shared", 2, False, more)
    rates = [line["lr"] for line in records(tmp_path, "shared") if "lr" in line]
    assert len(rates) == 9  # 10 rows by 2 x 2, and three times
    assert rates == pytest.approx([0.05 * (9 - n) / 9 for n in range(9)], abs=1e-12)


def test_a_loss_of_ones_own_has_to_say_that_it_can(tmp_path: Path) -> None:
    class Own(SFTTrainer):
        name = "own_loss_for_the_test"

        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch)

    class Said(Own):
        name = "own_loss_that_shares_for_the_test"
        shares_sequences = True

    class Inherited(SFTTrainer):
        name = "inherited_loss_for_the_test"

    settings = settings_of("sft", str(tmp_path), "run", sequence_parallel_size=2)
    with pytest.raises(RecipeError, match="sequence_parallel_size: 2, and Own does not state that its loss is right"):
        get_config({**settings, "type": Own.name})
    for trainer in (Said, Inherited):
        assert get_config({**settings, "type": trainer.name}).sequence_parallel_size == 2


def without_attention(root: str) -> str:
    """Returns the error of a loss that is computed without the rest of the sequence."""

    class Blind(SFTTrainer):
        name = "blind_for_the_test"
        shares_sequences = True

        def loss(self, batch: Any) -> torch.Tensor:
            embedded = self.model.module.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
            return embedded.square().sum() / batch["num_items_in_batch"]  # type: ignore[no-any-return]

    process_group.init_process_group()
    if process_group.is_main():
        recipe("sft", Path(root) / "files")
    process_group.barrier()
    trainer = Blind(get_config(settings_of("sft", root, "run", type=Blind.name, sequence_parallel_size=2)))
    try:
        trainer.train()
    except TrainingError as error:
        return str(error)
    return ""


def test_a_model_that_does_not_share_its_attention_is_found(tmp_path: Path) -> None:
    for message in processes.run(without_attention, 2, str(tmp_path)):
        assert (
            message.startswith("sequence_parallel_size: the loss of") and "without the rest of the sequence" in message
        )
