"""Small networks on real engines, without a trainer: what the tests of engine and checkpoint share."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.initialize import initialize
from arctic_training.state import Progress, Rng, RunState

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

STAGES = (0, 1, 2, 3)


def recipe(steps: int = 1, dtype: str = "fp32", **block: Any) -> TrainerConfig:
    """As much of a recipe as an engine reads."""
    config: Any = SimpleNamespace(
        micro_batch_size=1,
        gradient_accumulation_steps=steps,
        max_grad_norm=None,
        gradient_clip_value=None,
        sequence_parallel_size=1,
        mesh=MeshConfig(),
        model=SimpleNamespace(dtype=dtype),
        deepspeed=block,
    )
    return config  # type: ignore[no-any-return]


class Net(torch.nn.Module):
    """Dropout, a buffer that changes, a frozen layer, a parameter that two layers share, and one too small to shard."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(6, width)
        self.norm = torch.nn.LayerNorm(width)
        self.frozen = torch.nn.Linear(width, width).requires_grad_(False)
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(width, 6)
        self.tail = torch.nn.Linear(6, width, bias=False)
        self.tail.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("constant", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.add_(x.float().sum())  # type: ignore[operator]
        hidden = self.drop(self.norm(self.embed(x) + self.tail(x)).tanh())
        return self.head(self.frozen(hidden))  # type: ignore[no-any-return]


def make(
    stage: int, dtype: str = "fp32", steps: int = 1, *, seed: int = 0, width: int = 16, **block: Any
) -> TrainedEngine:
    torch.manual_seed(seed)
    net = Net(width)
    decayed = [parameter for parameter in net.parameters() if parameter.requires_grad and parameter.dim() > 1]
    others = [parameter for parameter in net.parameters() if parameter.requires_grad and parameter.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (1 + update))
    config = recipe(steps, dtype, **{"zero_optimization": {"stage": stage}, **block})
    return initialize(config, net, optimizer, schedule)


def batch(number: int, rows: int = 2) -> torch.Tensor:
    """[rows, 6], another one for every number and rank."""
    draw = torch.Generator().manual_seed(1000 * number + process_group.rank())
    return torch.randn(rows, 6, generator=draw)


def window(engine: TrainedEngine, first: int, size: int, planned: int) -> list[float]:
    """One update over ``size`` micro-batches on each rank, beginning with the batch ``first``."""
    dtype = next(engine.module.parameters()).dtype
    losses = []
    engine.train()
    for n in range(size):
        x = batch(first + n).to(dtype)
        engine.set_gradient_accumulation_boundary(n == size - 1)
        loss = (engine(x).float() - x.float()).square().mean()
        engine.backward(loss * (planned / size))
        engine.step()
        losses.append(loss.item())
    return losses


def run_of(folder: Path, progress: Progress) -> tuple[Any, RunState]:
    """What a checkpoint engine is shown of a trainer, and the state of its run."""
    view = SimpleNamespace(run_dir=folder, progress=progress, config=recipe(), tokenizer=None, eval_loaders={})
    return view, RunState(progress=progress, rng=Rng())


def everything(engine: TrainedEngine) -> dict[str, torch.Tensor]:
    """Every number this process holds of an engine, for comparing."""
    from arctic_training.engine.snapshot import snapshot, weights

    state_dict = {f"weight.{name}": tensor.detach().clone() for name, tensor in weights(engine).items()}
    state = snapshot(engine)
    state_dict |= {f"shadow.{n}": tensor.clone() for n, tensor in enumerate(state["shadows"])}
    state_dict |= {f"buffer.{name}": tensor.clone() for name, tensor in state["buffers"].items()}
    for n, moments in enumerate(state["moments"]):
        state_dict |= {f"moment.{n}.{key}": torch.as_tensor(value).clone() for key, value in moments.items()}
    return state_dict


def differing(here: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """The names under which two runs do not hold the same bits."""
    odd = sorted(here.keys() ^ other.keys())
    return odd + [name for name in sorted(here.keys() & other.keys()) if not torch.equal(here[name], other[name])]
