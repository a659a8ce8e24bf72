"""Checkpoints of the trained weights alone: a run resumes from them exactly, on the model that it had."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arctic_training import SFTTrainer, get_config, load_pretrained
from arctic_training.distributed import process_group
from arctic_training.errors.types import CheckpointError, RecipeError, ResumeError
from tests import processes
from tests.contract.cases import recipe

LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}


def settings(root: Path, run: str, **keys: Any) -> dict[str, Any]:
    own = recipe("sft", root / "files", output_dir=str(root / run), micro_batch_size=2, train_iters=4)
    own["model"] = {"name_or_path": own["model"]["name_or_path"], "dtype": "fp32", "peft_config": LORA}
    own["checkpoint"] = {"type": "deepspeed", "trainable_only": True, "save_every_n_steps": 2}
    return own | keys


def train(root: str, run: str, micro: int, stage: int, keys: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the trained weights at the end."""
    from arctic_training.engine.zero import full_parameter

    process_group.init_process_group()
    block = {"zero_optimization": {"stage": stage}}
    trainer = SFTTrainer(get_config(settings(Path(root), run, micro_batch_size=micro, deepspeed=block, **keys)))
    trainer.train()
    parameters = trainer.model.module.named_parameters()
    weights = {name: full_parameter(one).detach() for name, one in parameters if one.requires_grad}
    trainer.close()
    return weights


def step_2(root: Path, run: str) -> Path:
    return root / run / "checkpoints" / "deepspeed" / "step_2"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder of a run of two processes, and its trained weights."""
    root = tmp_path_factory.mktemp("trainable_only")
    recipe("sft", root / "files")
    weights, _ = processes.share(train, 2, str(root), "first", 1, 1, {})
    return root, weights


def test_a_file_has_the_trained_weights_alone(first: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, trained = first
    saved = load_file(step_2(root, "first") / "model.safetensors")
    assert saved.keys() == trained.keys() and all("lora_" in name for name in saved)


@pytest.mark.parametrize(("world", "stage"), [(2, 1), (2, 3), (1, 0)])
def test_a_run_resumes_from_it(world: int, stage: int, first: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """To the bit on the same processes at the same stage, and from shards, which another run saves, too."""
    root, expected = first
    start, keys = "first", {"resume": str(step_2(root, "first"))}
    if stage == 3:
        processes.share(train, world, str(root), start := "sharded", 1, 3, {"exit_iteration": 2})
        keys = {"resume": str(step_2(root, start))}
    for n, (parts, now) in enumerate([(world, stage), (1, 1)] if stage == 3 else [(world, stage)]):
        for weights in processes.share(train, parts, str(root), f"resumed_{stage}_{n}", 2 // parts, now, keys):
            for name, weight in weights.items():
                if (parts, now) == (2, 1):
                    assert torch.equal(weight, expected[name]), name
                else:
                    torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def test_a_model_that_has_changed_is_refused(first: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, _ = first
    file = root / "files" / "model" / "model.safetensors"
    before = load_file(file)
    changed = {name: tensor.clone() for name, tensor in before.items()}
    changed["model.norm.weight"][0] += 1e-3
    save_file(changed, file, metadata={"format": "pt"})
    try:
        with pytest.raises(ResumeError, match=r"those of model that are not trained differ from the ones of the run"):
            SFTTrainer(get_config(settings(root, "changed", resume=str(step_2(root, "first")))))
    finally:
        save_file(before, file, metadata={"format": "pt"})


def test_what_no_name_loads_is_refused(tmp_path: Path) -> None:
    own = settings(tmp_path, "run")
    own["model"]["random_weights"] = True
    with pytest.raises(RecipeError, match=r"trainable_only: below its adapter, model is not what model.name_or_path"):
        SFTTrainer(get_config(own))


def test_it_is_for_resuming_alone(first: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, _ = first
    with pytest.raises(CheckpointError, match=r"holds the trained weights alone \(checkpoint\.trainable_only\)"):
        load_pretrained(step_2(root, "first"))


def test_with_nothing_frozen_it_is_any_checkpoint(tmp_path: Path) -> None:
    own = settings(tmp_path, "run", train_iters=2)
    del own["model"]["peft_config"]
    trainer = SFTTrainer(get_config(own))
    trainer.train()
    trainer.close()
    assert not json.loads((step_2(tmp_path, "run") / "manifest.json").read_text()).get("frozen")
    model, _ = load_pretrained(step_2(tmp_path, "run"))
    assert next(model.parameters()).numel() > 0
