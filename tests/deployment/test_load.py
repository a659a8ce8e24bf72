"""What a run left is loaded as the model that it trained, from whatever the path names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, get_config, load_pretrained
from arctic_training.errors.types import ArcticError, CheckpointError, InputError
from tests.deployment.runs import IDS, TrainedRun, complete, make_files, recipe
from tests.processes import share


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


HUGGINGFACE = "checkpoints/huggingface/step_4"
PARTS = ["", "checkpoints/deepspeed", "checkpoints/deepspeed/step_4", "checkpoints/huggingface"]


@pytest.mark.parametrize("part", PARTS)
def test_every_path_of_a_run_loads_its_model(full_run: TrainedRun, part: str) -> None:
    model, tokenizer = load_pretrained(full_run.run_dir / part, device="cpu")
    assert not model.training and torch.equal(logits(model), full_run.logits)
    assert complete(model, tokenizer) == full_run.completion


@pytest.mark.parametrize("kind", ["deepspeed", "huggingface"])
def test_an_adapter_is_put_on_its_base(lora_run: TrainedRun, kind: str) -> None:
    model, tokenizer = load_pretrained(lora_run.checkpoint(kind), device="cpu")
    assert hasattr(model, "peft_config") and torch.equal(logits(model), lora_run.logits)
    assert complete(model, tokenizer) == lora_run.completion


def test_the_average_is_that_of_the_callback(full_run: TrainedRun) -> None:
    saved = torch.load(full_run.checkpoint("deepspeed") / "run_0.pt", weights_only=True)
    model, _ = load_pretrained(full_run.checkpoint("deepspeed"), averaged=True, device="cpu")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved["callback.ema"]["weights"][name])
    assert not torch.equal(logits(model), full_run.logits)


def train_on_two(folder: str) -> Any:
    """A run of two processes at ZeRO stage 3; returns the full weights."""
    from arctic_training.engine.zero import full_parameter

    keys = {"deepspeed": {"zero_optimization": {"stage": 3}}, "evaluate_last": False, "callbacks": [{"type": "ema"}]}
    config = get_config(recipe(Path(folder), lora=False, **keys) | {"train_iters": 2, "micro_batch_size": 2})
    trainer = SFTTrainer(config)
    trainer.train()
    weights = {name: full_parameter(one) for name, one in trainer.model.module.named_parameters()}
    with trainer.averaged():
        averages = {name: full_parameter(one) for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return weights, averages


def test_shards_of_several_ranks_are_put_together(tmp_path: Path) -> None:
    make_files(tmp_path, hidden_size=28, num_attention_heads=2, num_key_value_heads=1, intermediate_size=33)
    weights, averages = share(train_on_two, 2, str(tmp_path))[0]
    for expected, options in ((weights, {}), (averages, {"averaged": True})):
        model, _ = load_pretrained(tmp_path / "run/checkpoints/deepspeed", device="cpu", **options)
        assert expected.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(one, expected[name]) for name, one in model.named_parameters())


def test_a_folder_of_transformers_has_the_dtype_that_is_asked_for(full_run: TrainedRun) -> None:
    model, tokenizer = load_pretrained(full_run.folder / "model", dtype="bf16", device="cpu")
    assert model.dtype == torch.bfloat16 and tokenizer is not None and tokenizer.chat_template


def test_the_best_checkpoint_is_the_one_that_is_named(full_run: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(full_run.run_dir, tmp_path / "run")
    root = tmp_path / "run" / "checkpoints" / "huggingface"
    with pytest.raises(InputError, match="no checkpoint in it is marked as the best"):
        load_pretrained(tmp_path / "run", best=True)
    (root / "step_4").rename(root / "step_2")
    (root / "best").write_text("step_2\n")
    manifest = json.loads((root / "step_2" / "manifest.json").read_text())
    (root / "step_2" / "manifest.json").write_text(json.dumps(manifest | {"step": 2}))
    model, _ = load_pretrained(tmp_path / "run", best=True, device="cpu")
    assert torch.equal(logits(model), full_run.logits)


def cut(folder: Path) -> None:
    path = folder / "checkpoints/deepspeed/step_4/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "part", "error", "message"),
    [
        (lambda run: (run / f"{HUGGINGFACE}/config.json").unlink(), HUGGINGFACE, CheckpointError, "is missing"),
        (cut, "checkpoints/deepspeed/step_4", CheckpointError, "bytes instead of"),
        (lambda run: (run / "recipe.yaml").unlink(), "checkpoints/deepspeed/step_4", InputError, "give its --recipe"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "", InputError, "no complete checkpoint in it, and no model"),
        (lambda run: None, "nothing", InputError, "no such file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused(
    full_run: TrainedRun, tmp_path: Path, change: Any, part: str, error: type[ArcticError], message: str
) -> None:
    shutil.copytree(full_run.run_dir, tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(error, match=message):
        load_pretrained(tmp_path / "run" / part)
