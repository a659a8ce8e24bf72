"""What a model adds to its loss itself is in the loss of every trainer, or the run ends before its first update."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.errors.types import TrainingError
from arctic_training.model.token_losses import token_losses
from arctic_training.registry import lookup
from tests import tiny
from tests.objectives import dpo_runs as dpo
from tests.objectives import grpo_runs as grpo

WEIGHT = 0.5


def save_experts(folder: Path) -> None:
    """A Mixtral whose experts are anything but balanced, in place of the model of ``folder``."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shutil.rmtree(folder / "model")
    tiny.save_tokenizer(folder / "model")
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    tokens = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 3, "max_position_embeddings": 512}
    settings: dict[str, Any] = {**shape, **heads, **tokens, "router_aux_loss_coef": WEIGHT}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**settings, output_router_logits=True))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.mul_(30)
    model.save_pretrained(folder / "model")


def balance(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """What transformers adds for the documents of a packed batch, as rows with their mask; unweighted."""
    ends, ids = batch["cu_seq_lens_q"].tolist(), batch["input_ids"][0]
    rows = [ids[start:end] for start, end in pairwise(ends)]
    if not (batch["labels"][0, ends[-2] :] != -100).any():
        rows = rows[:-1]  # what fills the row
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    aux_loss: torch.Tensor = model(input_ids=padded, attention_mask=mask, use_cache=False).aux_loss
    return aux_loss


def test_a_preference_loss_holds_it_once_over_the_pairs(tmp_path: Path) -> None:
    dpo.save_files(tmp_path)
    save_experts(tmp_path)
    trainer = dpo.make_trainer(tmp_path, micro_batch_size=7, sft_weight=0.3)
    batch = dpo.first_batch(trainer)
    with torch.no_grad():
        term = WEIGHT * balance(trainer.model.module, batch)
        loss = trainer.loss(batch)
        trainer.model.module.config.output_router_logits = False
        alone = trainer.loss(batch)
        trainer.model.module.config.output_router_logits = True
    assert term > 0.6
    torch.testing.assert_close(loss, alone + term, rtol=1e-5, atol=1e-5)
    trainer.metrics.compute(lambda numbers: numbers)
    means = trainer.finalize_eval_metrics({"preference": 1.0, "nll": 2.0})
    assert means["loss"] == pytest.approx(1.6)
    trainer.train()
    trainer.close()


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_a_policy_loss_holds_it(tmp_path: Path, normalize: str) -> None:
    grpo.save_files(tmp_path)
    save_experts(tmp_path)
    trainer = grpo.make_trainer(tmp_path, micro_batch_size=2, normalize=normalize, beta=0)
    batch = grpo.first_rollout(trainer)
    term = WEIGHT * balance(trainer.model.module, batch["inputs"])
    loss = trainer.loss(batch)
    trainer.model.module.config.output_router_logits = False
    torch.testing.assert_close(loss, trainer.loss(batch) + term, rtol=1e-5, atol=1e-5)
    trainer.close()


class OfLogits(SFTTrainer):
    """A loss made of logits, which knows nothing of experts."""

    name = "of_logits_for_tests"

    def loss(self, batch: Any) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_items_in_batch")}
        logits = self.model(**inputs).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())


class OfItsOwn(SFTTrainer):
    name = "of_its_own_for_tests"

    def loss(self, batch: Any) -> torch.Tensor:
        return self.model(**batch).loss


class OfSingleLosses(SFTTrainer):
    name = "of_single_losses_for_tests"

    def loss(self, batch: Any) -> torch.Tensor:
        terms: list[torch.Tensor] = []
        losses = token_losses(self.model, batch, terms=terms)
        return losses.sum() / batch["num_items_in_batch"] + terms[0]


def sft(folder: Path, kind: str, **keys: Any) -> Any:
    tiny.save_chats(folder / "chats.jsonl", 6)
    (folder / "model").mkdir(exist_ok=True)
    save_experts(folder)
    recipe = {
        "type": kind,
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": {"sources": [str(folder / "chats.jsonl")], "max_length": 256, "cache_dir": str(folder / "cache")},
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "optimizer": {"type": "sgd", "lr": 0.1},
        "epochs": 1,
        "output_dir": str(folder / "run"),
        "loss_log_interval": 0,
        **keys,
    }
    return lookup("trainer", kind)(get_config(recipe))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["sft", "of_its_own_for_tests", "of_single_losses_for_tests"])
def test_a_window_has_the_mean_over_its_micro_batches(tmp_path: Path, kind: str) -> None:
    trainer = sft(tmp_path, kind)
    model, entropies, terms = trainer.model.module, 0.0, []
    trainer.train_loader.seek(0, 0)
    batches = list(trainer.train_loader)
    with torch.no_grad():
        for batch in batches:
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            logits, aims = out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
            entropies += float(torch.nn.functional.cross_entropy(logits, aims, reduction="sum"))
            terms.append(WEIGHT * float(out.aux_loss))
    targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert len(batches) == 3
    trainer.train()
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == pytest.approx(entropies / targets + sum(terms) / 3, rel=1e-5)
    trainer.close()


def test_a_loss_that_leaves_it_out_ends_the_run_before_its_first_update(tmp_path: Path) -> None:
    trainer = sft(tmp_path, "of_logits_for_tests")
    with pytest.raises(TrainingError, match=r"by router_aux_loss_coef, and the loss of .*OfLogits.* leaves that out"):
        trainer.train()
    assert trainer.progress.step == 0
    trainer.close()
    trainer = sft(
        tmp_path,
        "of_logits_for_tests",
        model={
            "name_or_path": str(tmp_path / "model"),
            "dtype": "fp32",
            "hf_config_kwargs": {"output_router_logits": False},
        },
        output_dir=str(tmp_path / "other"),
    )
    trainer.train()
    trainer.close()
