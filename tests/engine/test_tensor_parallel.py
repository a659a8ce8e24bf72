"""Weights that two processes divide: loss, gradient and its norm are those of the whole model, of every type."""

from typing import Any

import pytest
import torch

from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.engine import tensor_parallel
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.initialize import freeze, initialize
from arctic_training.engine.internals.parameters import shard_dim
from arctic_training.engine.zero import full_gradient, full_parameter
from arctic_training.model.token_losses import token_losses
from tests import processes
from tests.engine import small

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
}


def build(kind: str, lora: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """A model of a type, of random weights without any that are zero or one, and with an adapter if one is given."""
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SHAPE, **overrides})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    if lora is not None:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **lora))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def engine_of(model: Any, stage: int = 1, dtype: str = "fp32", **block: Any) -> TrainedEngine:
    process_group.init_process_group()
    world = process_group.world_size()
    config = small.recipe(dtype=dtype, zero_optimization={"stage": stage}, gradient_clipping=0.1, **block)
    config.mesh = MeshConfig(model=world)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)
    return initialize(config, model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))


def steps(kind: str, stage: int, dtype: str, **overrides: Any) -> dict[str, Any]:
    """The losses, gradients and gradient norms of two steps, and the weights after them."""
    engine = engine_of(build(kind, **overrides).to(torch.bfloat16 if dtype == "bf16" else torch.float32), stage, dtype)
    seen: dict[str, Any] = {"losses": [], "norms": [], "gradients": {}}
    for _ in range(2):
        loss = token_losses(engine, batch(), reduction="sum") / 22
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(loss)
        for name, parameter in engine.module.named_parameters():
            if (gradient := full_gradient(parameter)) is not None:
                seen["gradients"].setdefault(name, gradient)
        engine.step()
        seen["losses"].append(loss.item())
        seen["norms"].append(engine.grad_norm)
    seen["weights"] = {name: full_parameter(one) for name, one in engine.module.named_parameters()}
    copies = collectives.all_gather_object(
        {name: one.detach().clone() for name, one in engine.module.named_parameters()}
    )
    full = [name for name, one in engine.module.named_parameters() if shard_dim(one) is None]
    seen["drifted"] = [name for name in full if any(not torch.equal(copies[0][name], one[name]) for one in copies)]
    seen["local"] = sum(parameter.numel() for parameter in engine.module.parameters())
    engine.destroy()
    return seen


def several(world_is_one: bool, cases: list[tuple[str, int, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [steps(kind, stage, dtype, **more) for kind, stage, dtype, more in cases]


TRAINED = ["q_norm", "lm_head"]
"""Layers that are trained beside the adapter, of which each process has all, or a part of the gradient."""
CASES: list[tuple[str, int, str, dict[str, Any]]] = [
    *((kind, 1, "fp32", {}) for kind in tensor_parallel.MODEL_TYPES),
    ("llama", 2, "fp32", {}),
    ("llama", 1, "bf16", {}),
    ("llama", 2, "bf16", {}),
    ("llama", 1, "fp32", {"tie_word_embeddings": True}),
    ("qwen2", 1, "fp32", {"num_key_value_heads": 4}),
    ("llama", 1, "fp32", {"attention_bias": True, "mlp_bias": True}),
    ("llama", 1, "fp32", {"lora": {"target_modules": "all-linear"}}),
    ("gemma2", 2, "fp32", {"lora": {"target_modules": ["o_proj", "up_proj", "embed_tokens"], "use_rslora": True}}),
    ("qwen2", 1, "fp32", {"lora": {"target_modules": ["q_proj", "down_proj"], "bias": "all"}}),
    (
        "qwen3",
        1,
        "fp32",
        {"lora": {"target_modules": ["k_proj", "o_proj"], "lora_bias": True, "modules_to_save": TRAINED}},
    ),
    ("llama", 1, "bf16", {"lora": {"target_modules": ["v_proj", "down_proj"]}}),
]


def frozen_logits(kind: str, lora: dict[str, Any] | None) -> torch.Tensor:
    process_group.init_process_group()
    config = small.recipe()
    config.mesh = MeshConfig(model=process_group.world_size())
    engine = freeze(config, build(kind, lora))
    logits: torch.Tensor = engine(**batch()).logits.detach()
    is_divided = any(shard_dim(one) is not None for one in engine.module.parameters())
    assert is_divided == (process_group.world_size() > 1)
    engine.destroy()
    return logits


@pytest.mark.parametrize("lora", [None, {"target_modules": "all-linear"}])
def test_two_processes_divide_a_frozen_model_too(lora: dict[str, Any] | None) -> None:
    (expected,) = processes.share(frozen_logits, 1, "qwen3", lora)
    for logits in processes.share(frozen_logits, 2, "qwen3", lora):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lora", "part"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "layers.0.self_attn.q_proj is Dora"),
        ({"target_modules": ["k_proj"], "modules_to_save": ["up_proj"]}, "layers.0.mlp.up_proj is of peft."),
    ],
)
def test_adapters_that_are_more_than_plain_lora_are_not_divided(lora: dict[str, Any], part: str) -> None:
    """Both are refused before data are prepared, by what they do to a layer that the plan divides."""
    problem = tensor_parallel.problem(build("llama", lora), 2)
    assert problem.startswith("processes divide the linear layers of LlamaConfig and plain LoRA, and ")
    assert part in problem


def test_two_processes_that_divide_a_model_train_as_one_does() -> None:
    """Norms of the gradient are logged before clipping; a limit of 0.1 clips every step here."""
    (expected,) = processes.run(several, 1, True, CASES)
    for mine in processes.run(several, 2, False, CASES):
        for case, want, got in zip(CASES, expected, mine, strict=True):
            near = 1e-5 if case[2] == "fp32" else 2e-2
            assert got["losses"] == pytest.approx(want["losses"], rel=near), case
            assert got["norms"] == pytest.approx(want["norms"], rel=near), case
            assert all(norm > 0.1 for norm in got["norms"])
            assert got["gradients"].keys() == want["gradients"].keys(), case
            scale = max(float(gradient.norm()) for gradient in want["gradients"].values())
            for name, gradient in want["gradients"].items():
                assert float((got["gradients"][name] - gradient).norm()) / scale < near, (case, name)
            assert not got["drifted"], case
            assert got["local"] < want["local"], case
