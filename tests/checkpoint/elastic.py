"""Engines that are saved in one layout and go on in another: what the tests of elastic resumes share."""

from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointConfig, DeepSpeedCheckpointEngine
from arctic_training.distributed import collectives, process_group
from arctic_training.engine import optimizers
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.initialize import initialize
from arctic_training.engine.zero import full_parameter
from arctic_training.optimizer.adagrad import Adagrad
from arctic_training.optimizer.lamb import Lamb
from arctic_training.optimizer.lion import Lion
from arctic_training.optimizer.schedule_free import ScheduleFreeAdamW
from arctic_training.state import Progress
from tests.engine import small

ROWS = 4
"""Of an update, however many processes share them."""


class Net(torch.nn.Module):
    """No dropout, which is drawn process by process; sizes that neither two processes nor an alignment divide."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 19)
        self.norm = torch.nn.LayerNorm(19)
        self.frozen = torch.nn.Linear(19, 19).requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.last = torch.nn.Linear(19, 6)
        self.tied = torch.nn.Linear(6, 19, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("shift", torch.randn(19))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(x) + self.tied(x) + self.shift.to(x.dtype)).tanh()
        return self.last(self.frozen(hidden) * self.scale)  # type: ignore[no-any-return]


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.5, centered=True),
    "muon": lambda groups: optimizers.muon(
        [
            {**groups[0], "use_muon": True, "lr": 1e-2, "momentum": 0.9},
            {**groups[1], "use_muon": False, "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8},
        ]
    ),
    "adafactor": lambda groups: adafactor(groups),
    "adagrad": lambda groups: Adagrad(groups, lr=1e-2, lr_decay=0.1, eps=1e-10),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=1e-2),
    "lamb": lambda groups: Lamb(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-6),
    "lion": lambda groups: Lion(groups, lr=1e-3, betas=(0.9, 0.99)),
    "schedule_free": lambda groups: ScheduleFreeAdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8),
}


def adafactor(groups: Any) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=1e-2, relative_step=False, scale_parameter=False)


Layout = int | str
"""The ZeRO stage; ``"2 offloaded"``: with the optimizer on the CPU."""


def make(
    layout: Layout,
    optimizer: str = "adamw",
    dtype: str = "fp32",
    *,
    seed: int = 0,
    clip_value: float | None = None,
    **zero: Any,
) -> TrainedEngine:
    stage, *offloaded = str(layout).split()
    if offloaded:
        zero["offload_optimizer"] = {"device": "cpu"}
    torch.manual_seed(seed)
    net = Net()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": 0.1},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    torch_optimizer = OPTIMIZERS[optimizer.removeprefix("flat ")](groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(torch_optimizer, lambda update: 1 / (1 + update))
    config = small.recipe(ROWS // process_group.world_size(), dtype, zero_optimization={"stage": int(stage), **zero})
    config.gradient_clip_value = clip_value
    if not optimizer.startswith("flat"):
        return initialize(config, net, torch_optimizer, schedule)
    with mock.patch(
        "deepspeed.runtime.engine.FusedAdam", type(torch_optimizer)
    ):  # what its own, for GPUs, is wrapped in
        return initialize(config, net, torch_optimizer, schedule)


def update(engine: TrainedEngine, number: int) -> float:
    """One update on the rows of ``number``, however they are shared; returns its loss over all of them."""
    draw = torch.Generator().manual_seed(number)
    rows = torch.randn(ROWS, 1, 6, generator=draw)[process_group.rank() :: process_group.world_size()]
    dtype, total = next(engine.module.parameters()).dtype, torch.zeros(1, dtype=torch.float64)
    engine.train()
    for n, x in enumerate(rows):
        engine.set_gradient_accumulation_boundary(n == len(rows) - 1)
        loss = (engine(x.to(dtype)).float() - x).square().mean()
        engine.backward(loss)
        engine.step()
        total += loss.item() / ROWS
    return float(collectives.all_reduce(total))


def save(engine: TrainedEngine, folder: Path, number: int) -> None:
    view, state = small.run_of(folder, Progress(step=number))
    DeepSpeedCheckpointEngine(view, DeepSpeedCheckpointConfig(output_dir=folder))().save({"model": engine}, state)


def load(engine: TrainedEngine, folder: Path) -> int:
    view, state = small.run_of(folder, Progress())
    DeepSpeedCheckpointEngine(view, DeepSpeedCheckpointConfig(output_dir=folder))().load({"model": engine}, state)
    return view.progress.step  # type: ignore[no-any-return]


def full_tensors(engine: TrainedEngine) -> dict[str, torch.Tensor]:
    """Returns the full weights and buffers, which are the same in every layout."""
    held = {name: full_parameter(one).cpu() for name, one in engine.module.named_parameters()}
    return held | {name: one.detach().clone() for name, one in engine.module.named_buffers()}


def masters(engine: TrainedEngine) -> dict[str, torch.Tensor]:
    """Returns the full fp32 weights behind those of less precision, the same in every layout."""
    from deepspeed.utils import safe_get_full_fp32_param

    named = {name: one for name, one in engine.module.named_parameters() if one.requires_grad}
    if engine.deepspeed.zero_optimization_stage():
        return {name: safe_get_full_fp32_param(one).clone() for name, one in named.items()}
    names = {id(one): name for name, one in named.items()}
    optimizer = engine.deepspeed.optimizer
    if hasattr(optimizer, "fp32_groups_flat"):
        cut = [
            (parameter, part.view(parameter.shape))
            for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True)
            for parameter, part in zip(group, flat.detach().clone().split([p.numel() for p in group]), strict=True)
        ]
        return {names[id(parameter)]: part for parameter, part in cut}
    pairs = zip(chain(*optimizer.fp16_groups), chain(*optimizer.fp32_groups), strict=True)
    return {names[id(one)]: master.detach().clone() for one, master in pairs}
