"""The loss of the targets through DeepSpeed: parted weights, tied ones, adapters, and a rank that has no target."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.distributed import process_group
from arctic_training.engine.config import deepspeed_config
from arctic_training.engine.initialize import initialize
from arctic_training.engine.zero import full_parameter, sharded_construction
from arctic_training.model import attention
from arctic_training.model.token_losses import token_losses
from arctic_training.model.transforms.peft import PeftConfig, PeftTransform
from tests import processes, tiny
from tests.model.test_token_losses import packed

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"]}
KINDS = ("untied", "tied", "lora")


def build(kind: str, folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    attention.register()
    where = (
        tiny.save_model(folder / kind, tie_word_embeddings=kind == "tied")
        if not (folder / kind).exists()
        else folder / kind
    )
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        where, attn_implementation=attention.NAME, dtype=torch.float32
    )
    attention.add_packing_hooks(model)
    if kind == "lora":
        torch.manual_seed(3)
        model = PeftTransform(PeftConfig(type="peft", config=LORA))(model)
    return model


def draw(seed: int, *, targets: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    batch = packed([torch.randint(3, 97, (n,), generator=generator) for n in (5, 9, 2)])
    if not targets:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    return batch


def loss(model: Any, batch: dict[str, Any], reduction: Any) -> torch.Tensor:
    return token_losses(model, batch, reduction=reduction).sum() / 20


def train(stage: int, kind: str, reduction: str, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Two updates; the second process has no target in the second."""
    process_group.init_deepspeed()
    recipe: Any = SimpleNamespace(
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        max_grad_norm=None,
        gradient_clip_value=None,
        sequence_parallel_size=1,
        mesh=MeshConfig(),
        model=SimpleNamespace(dtype="fp32"),
        deepspeed={"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0},
    )
    with sharded_construction(deepspeed_config(recipe, world=process_group.world_size())):
        model = build(kind, folder)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine = initialize(recipe, model, torch.optim.SGD(trained, lr=0.1), None)
    losses = []
    for update in range(2):
        value = loss(
            engine, draw(10 * update + process_group.rank(), targets=not (update and process_group.rank())), reduction
        )
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(value)
        engine.step()
        losses.append(value.item())
    weights = {name: full_parameter(p).cpu() for name, p in engine.module.named_parameters() if p.requires_grad}
    engine.destroy()
    return losses, weights


def train_all(folder: Path) -> dict[Any, Any]:
    """Every case in one pair of processes: they take longer to start than to train."""
    return {case: train(*case, folder) for case in CASES}


CASES = [*product((1, 3), KINDS, ("sum",)), (3, "untied", "none"), (3, "lora", "none")]


def expected(kind: str, folder: Path) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    model = build(kind, folder)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    values = []
    for update in range(2):
        parts = [loss(model, draw(10 * update + rank, targets=not (update and rank)), "sum") for rank in range(2)]
        values.append([part.item() for part in parts])
        (sum(parts) / 2).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    return values, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    reference_values = {kind: expected(kind, tmp_path) for kind in KINDS}
    for rank, results in enumerate(processes.run(train_all, 2, tmp_path)):
        for (stage, kind, reduction), (losses, weights) in results.items():
            values, expected_weights = reference_values[kind]
            label = f"{kind}, {reduction}, stage {stage}, rank {rank}"
            assert losses == pytest.approx([value[rank] for value in values], rel=1e-5, abs=1e-6), label
            assert weights.keys() == expected_weights.keys(), label
            for name, weight in expected_weights.items():
                torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=f"{name}: {label}")
