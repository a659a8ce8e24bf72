"""Other weights for a while: the model computes with them, and nothing is different afterwards, at every stage."""

import pytest
import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.optimizer import torch_optimizer
from arctic_training.engine.internals.parameters import local_tensor
from arctic_training.engine.replaced_weights import replaced_weights, set_weights
from arctic_training.engine.zero import full_parameter
from tests import processes
from tests.engine import small


def engine_of(stage: int, dtype: str) -> TrainedEngine:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 100}  # some parameters are sharded, others are not
    return small.make(stage, dtype, zero_optimization=zero)


def replace(stage: int, dtype: str) -> list[str]:
    process_group.init_process_group()
    engine, twin = engine_of(stage, dtype), engine_of(stage, dtype)
    for one in (engine, twin):
        torch.manual_seed(1)  # of dropout
        small.window(one, 0, 2, 1)
    module, problems = engine.module, list[str]()
    held = {name: local_tensor(one) for name, one in (*module.named_parameters(), *module.named_buffers())}
    halves = {name: tensor.float() / 2 for name, tensor in held.items()}
    expected = small.Net().to(next(module.parameters()).dtype).eval()
    full = {name: full_parameter(parameter) / 2 for name, parameter in module.named_parameters()}
    expected.load_state_dict(full, strict=False)
    x = small.batch(7).to(next(module.parameters()).dtype)
    before = small.everything(engine)
    for _ in range(2):
        engine.eval()
        with torch.no_grad(), replaced_weights(engine, halves):
            output = engine(x)
        if not torch.allclose(output, expected(x), rtol=1e-5, atol=1e-5 if dtype == "fp32" else 1e-2):
            problems.append("another output")
    problems += [f"{name} has changed" for name, one in small.everything(engine).items() if not one.equal(before[name])]
    for one in (engine, twin):
        torch.manual_seed(2)
        small.window(one, 2, 2, 1)
    other = small.everything(twin)
    return problems + [
        f"{name} differs" for name, one in small.everything(engine).items() if not one.equal(other[name])
    ]


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (0, "bf16"), (2, "bf16"), (3, "fp32"), (3, "bf16")])
def test_nothing_is_different_afterwards(stage: int, dtype: str) -> None:
    world = 2 if stage else 1
    assert processes.share(replace, world, stage, dtype) == [[]] * world


def stepped_without_a_rate(stage: int, dtype: str) -> list[str]:
    """The names of weights that a step with the learning rate 0 changes after they were set."""
    process_group.init_process_group()
    engine = engine_of(stage, dtype)
    small.window(engine, 0, 2, 1)
    held = {name: local_tensor(one) for name, one in engine.module.named_parameters()}
    halves = {name: tensor.clone() / 2 for name, tensor in held.items()}
    set_weights(engine, halves)
    for group in torch_optimizer(engine.deepspeed.optimizer).param_groups:
        group["lr"] = 0.0
    small.window(engine, 2, 2, 1)
    now = {name: local_tensor(one) for name, one in engine.module.named_parameters()}
    return [name for name in halves if not now[name].equal(halves[name])]


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_a_step_goes_on_from_weights_that_were_set(stage: int, dtype: str) -> None:
    world = 2 if stage else 1
    assert processes.share(stepped_without_a_rate, world, stage, dtype) == [[]] * world
