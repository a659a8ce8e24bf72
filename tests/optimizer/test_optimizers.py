"""Optimizers: which weights decay, and that every one is itself at every ZeRO stage and type, or refused there."""

import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.distributed import process_group
from arctic_training.engine.initialize import initialize
from arctic_training.engine.zero import full_parameter
from arctic_training.errors.types import RecipeError
from arctic_training.optimizer.adagrad import AdagradFactory
from arctic_training.optimizer.deepspeed_factories import CPUAdamFactory, FusedAdamFactory, MuonFactory
from arctic_training.optimizer.factory import parameter_groups
from arctic_training.optimizer.huggingface_factories import AdafactorFactory
from arctic_training.optimizer.lamb import LambFactory
from arctic_training.optimizer.lion import LionFactory
from arctic_training.optimizer.schedule_free import ScheduleFreeFactory
from arctic_training.optimizer.torch_factories import (
    AdamFactory,
    AdamWFactory,
    NAdamFactory,
    RAdamFactory,
    RMSpropFactory,
    SGDFactory,
)

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "tie_word_embeddings": True, "attention_bias": True},
    "qwen3": SHAPE,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_oss": {**SHAPE, "num_local_experts": 4},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_biases_and_norms_do_not_decay_and_every_weight_is_there_once(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]))
    decays, stays = parameter_groups(model, 0.3)
    assert (decays["weight_decay"], stays["weight_decay"]) == (0.3, 0.0)
    both = [id(one) for one in (*decays["params"], *stays["params"])]
    assert sorted(both) == sorted(id(one) for one in model.parameters())
    names = {id(one): name for name, one in model.named_parameters()}
    for one in stays["params"]:
        name = names[id(one)]
        exempt = one.dim() < 2 or "bias" in name or "norm" in name or "ln_" in name or name.endswith(("A_log", ".D"))
        assert exempt, name
    for one in decays["params"]:
        name = names[id(one)]
        assert one.dim() >= 2
        assert not any(part in name for part in ("bias", "norm", "ln_")), name


def test_what_is_frozen_is_left_out_and_an_empty_group_too() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)).requires_grad_(False)
    net[0].requires_grad_(True)
    (group,) = parameter_groups(net, 0.1)
    assert [one.shape for one in group["params"]] == [(4, 4)]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.up = torch.nn.Linear(8, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.down = torch.nn.Linear(16, 8, bias=False)
        self.head = torch.nn.Linear(8, 11, bias=False)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.norm(self.up(self.embed(ids)).tanh())))  # type: ignore[no-any-return]


def view(stage: int, dtype: str) -> Any:
    block = {"zero_optimization": {"stage": stage}, "gradient_clipping": 1.0}
    sizes = {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "sequence_parallel_size": 1,
        "mesh": MeshConfig(),
        "max_grad_norm": None,
        "gradient_clip_value": None,
        "callbacks": [],
    }
    return SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(dtype=dtype), deepspeed=block, **sizes))


def make(factory: Any, stage: int, dtype: str, model: torch.nn.Module, **section: Any) -> Any:
    return factory(view(stage, dtype), factory.config_type(type=factory.name, **section))(model)


def train(factory: Any, stage: int, dtype: str, lr: float) -> tuple[float, float, torch.Tensor]:
    """First and last loss of twelve updates, and all weights after them."""
    process_group.init_deepspeed()
    torch.manual_seed(0)
    net = Net()
    engine = initialize(view(stage, dtype).config, net, make(factory, stage, dtype, net, lr=lr), None)
    losses = []
    for update in range(12):
        ids = torch.randint(0, 11, (32,), generator=torch.Generator().manual_seed(update))
        loss = torch.nn.functional.cross_entropy(engine(ids).float(), (ids * 3 + 1) % 11)
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    weights = torch.cat([full_parameter(one).flatten().float() for one in engine.module.parameters()])
    engine.destroy()
    return losses[0], losses[-1], weights


@pytest.mark.parametrize(("stage", "dtype"), [(0, "bf16"), (0, "fp32"), (1, "bf16"), (2, "fp32")])
def test_the_first_update_is_the_first(stage: int, dtype: str) -> None:
    process_group.init_deepspeed()
    net = Net()
    optimizer = make(AdamWFactory, stage, dtype, net, lr=0.5, weight_decay=0.5)
    before = net.up.weight.detach().clone()
    engine = initialize(view(stage, dtype).config, net, optimizer, None)
    inner = engine.deepspeed.optimizer if isinstance(engine.deepspeed.optimizer, torch.optim.Optimizer) else None
    inner = inner or engine.deepspeed.optimizer.optimizer
    held = [one for group in inner.param_groups for one in group["params"]]
    if stage == 0:
        same = next(one for one in held if one.shape == before.shape)
        torch.testing.assert_close(same.detach().float(), before.to(engine.module.up.weight.dtype).float())
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(engine(torch.arange(11)).float().square().mean())
    engine.step()
    assert {float(inner.state[one]["step"]) for one in held} == {1.0}
    engine.destroy()


EVERYWHERE = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")]
WHERE: dict[Any, tuple[float, list[tuple[int, str]]]] = {
    AdamWFactory: (1e-2, EVERYWHERE),
    FusedAdamFactory: (1e-2, EVERYWHERE),
    SGDFactory: (0.3, EVERYWHERE),
    AdafactorFactory: (1e-2, [(0, "fp32"), (0, "bf16")]),
    MuonFactory: (2e-2, [(0, "fp32"), (0, "bf16"), (1, "bf16")]),
    AdamFactory: (1e-2, [(0, "fp32"), (2, "fp32"), (1, "bf16")]),
    RAdamFactory: (5e-2, [(0, "fp32"), (1, "fp32"), (3, "fp32")]),
    NAdamFactory: (1e-2, [(0, "fp32"), (3, "fp32"), (0, "bf16")]),
    RMSpropFactory: (3e-3, [(0, "fp32"), (2, "fp32"), (3, "bf16")]),
    AdagradFactory: (3e-2, EVERYWHERE),
    LambFactory: (1e-2, [(0, "fp32"), (0, "bf16")]),
    ScheduleFreeFactory: (1e-2, EVERYWHERE),
    LionFactory: (1e-3, EVERYWHERE),
}


def compare(factory: Any, lr: float, where: list[tuple[int, str]]) -> None:
    first, last, weights = train(factory, *where[0], lr)
    assert last < first - 0.02
    for stage, dtype in where[1:]:
        *_, sharded = train(factory, stage, dtype, lr)
        near = 1e-5 if dtype == "fp32" else 0.02
        assert (sharded - weights).abs().max() < near, f"{factory.name} at stage {stage} in {dtype}"


@pytest.mark.parametrize("factory", WHERE, ids=lambda one: one.name)
def test_an_optimizer_is_itself_at_every_stage_and_type_at_which_it_is_allowed(factory: Any) -> None:
    lr, where = WHERE[factory]
    with torch.compiler.set_stance("force_eager"):  # DeepSpeed's Muon is compiled, for every shape anew
        compare(factory, lr, where)
    for stage, dtype in set(EVERYWHERE) - set(where):
        if stage <= factory.config_type(type=factory.name).highest_stage(dtype):
            continue  # allowed, and trained by another of the family
        with pytest.raises(RecipeError, match=r"^optimizer\.type: .* stage: 0|give deepspeed"):
            make(factory, stage, dtype, Net())


@pytest.mark.nightly
def test_deepspeeds_own_on_the_cpu_is_compiled_though_a_killed_build_has_left_its_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, for which others are compiled")
    # compiling takes a minute or two of both cores; the next test run on this machine need not
    folder = Path(tempfile.gettempdir()) / "arctic_training_tests_extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    lock = folder / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    (folder / "arctic_training.cpu_adam.lock").write_text(f"{socket.gethostname()} 1")  # who compiled it
    compare(CPUAdamFactory, 1e-2, EVERYWHERE)
    assert (folder / "cpu_adam" / "cpu_adam.so").exists() and not lock.exists()


def test_the_muon_of_the_matrices_and_the_adam_of_the_rest() -> None:
    net = Net()
    groups = make(MuonFactory, 0, "fp32", net, lr=0.02, adam_learning_rate=1e-3, weight_decay=0.2).param_groups
    inner = [one for group in groups if group["use_muon"] for one in group["params"]]
    assert {id(one) for one in inner} == {id(net.up.weight), id(net.down.weight)}
    assert {group["lr"] for group in groups if group["use_muon"]} == {0.02}
    assert {group["lr"] for group in groups if not group["use_muon"]} == {1e-3}
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_settings_reach_the_optimizer() -> None:
    optimizer = make(
        AdamWFactory, 0, "fp32", Net(), learning_rate="2e-3", betas=[0.8, 0.95], eps=1e-6, weight_decay="5%"
    )
    assert optimizer.defaults["fused"]
    assert {group["lr"] for group in optimizer.param_groups} == {2e-3}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    sgd = make(SGDFactory, 0, "fp32", Net(), lr=1, momentum=0.9, nesterov=True)
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.9, True)}


def test_settings_that_cannot_be_are_refused() -> None:
    for section in ({"lr": 1, "learning_rate": 1}, {"lr": -1}, {"betas": [0.9]}, {"weight_decay": "no"}):
        with pytest.raises(ValidationError):
            AdamWFactory.config_type(type="adamw", **section)
    with pytest.raises((ValidationError, RecipeError, ValueError)):
        make(SGDFactory, 0, "fp32", Net(), nesterov=True)
