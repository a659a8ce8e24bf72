"""The exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import RecipeError


class EMAConfig(ComponentConfig):
    """Options of the callback `ema`."""

    role: str = "model"
    """The role whose weights are averaged."""
    decay: float = Field(default=0.999, ge=0, lt=1)
    """Weight of the old average in each step."""
    warmup: bool = True
    """Start with the smaller decay min(decay, (1 + steps) / (10 + steps))."""


class EMA(Callback):
    """The exponential moving average of the weights, in fp32, updated after every step and saved in checkpoints.

    Each rank averages what it holds of the weights: all of them, or its shard under ZeRO stage 3.
    """

    name = "ema"
    config_type = EMAConfig

    def __init__(self, config: EMAConfig) -> None:
        super().__init__(config)
        self.steps = 0
        self.weights: dict[str, Tensor] = {}
        self._module: torch.nn.Module | None = None
        self._shares: Sequence[Mapping[str, Tensor]] = []
        """The state of the ranks that saved, until the module is built for which it is sharded anew."""

    def post_init(self, trainer: TrainerView) -> None:
        """Starts from the weights or a checkpoint. Raises `RecipeError` for a role that is not trained."""
        if self.config.role not in trainer.trainable_engines:
            known = ", ".join(trainer.trainable_engines)
            raise RecipeError(f"callbacks.ema.role: {self.config.role!r} is not trained here; there are: {known}")
        self._module = trainer.engines[self.config.role].module
        self._place_averages()

    def pre_after_update(self, trainer: TrainerView) -> None:
        """Updates the average before the evaluations and checkpoints of this step."""
        decay: float = self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        now = _state(trainer.engines[self.config.role].module)
        averages, counts = [name for name in now if now[name].is_floating_point()], now.keys()
        torch._foreach_lerp_([self.weights[n] for n in averages], [now[n].float() for n in averages], 1 - decay)
        for name in counts - set(averages):
            self.weights[name].copy_(now[name])

    def __call__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Returns the output of ``module`` with the averaged weights in place of its own, which do not change.

        All ranks must call it together under ZeRO stage 3.
        """
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        averages = {name: _gather_full(self.weights[name], value).to(value.dtype) for name, value in own.items()}
        with _without_zero_hooks(module):
            return torch.func.functional_call(module, averages, args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.steps, self.weights = int(state["steps"]), dict(state["weights"])
        self._place_averages()

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Any]], /) -> None:
        """Restores the state from those of ranks of another layout."""
        self.steps, self._shares = int(shares[0]["steps"]), [share["weights"] for share in shares]
        self._place_averages()

    def _place_averages(self) -> None:
        """Places the averages on the devices of the weights once the module is built."""
        if self._module is None:
            return
        if self._shares:
            held = (*self._module.named_parameters(), *self._module.named_buffers())
            self.weights = {name: _shard([share[name] for share in self._shares], value) for name, value in held}
            self._shares = []
        now = _state(self._module)
        self.weights = {name: _average_of(value, self.weights.get(name)) for name, value in now.items()}


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Returns what this rank holds of the weights; ``ds_tensor`` is its shard under ZeRO stage 3."""
    held = (*module.named_parameters(), *module.named_buffers())
    return {name: getattr(value, "ds_tensor", value).detach() for name, value in held}


def _gather_full(average: Tensor, parameter: Tensor) -> Tensor:
    """Returns the average of a full parameter, gathered from the shards of all ranks."""
    if not hasattr(parameter, "ds_tensor"):
        return average
    size = average.numel()
    parts = average.new_zeros(size * process_group.world_size())
    parts[size * process_group.rank() :][:size] = average.flatten()
    shape: torch.Size = getattr(parameter, "ds_shape")  # noqa: B009  the type of a tensor has none
    return collectives.all_reduce(parts)[: shape.numel()].view(shape)


def _shard(saved: Sequence[Tensor], parameter: Tensor) -> Tensor:
    """Returns this rank's average from those of the ranks that saved: full tensors, or shards of one."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    if (full := saved[0]).shape != shape:
        full = torch.cat([part.flatten() for part in saved])[: shape.numel()].view(shape)
    if not hasattr(parameter, "ds_tensor"):
        return full
    size = parameter.ds_tensor.numel()
    part = full.new_zeros(size)
    shard = full.flatten()[size * process_group.rank() :][:size]
    part[: len(shard)] = shard
    return part


@contextmanager
def _without_zero_hooks(module: torch.nn.Module) -> Iterator[None]:
    """Removes the hooks of ZeRO stage 3 inside, which would take the averages for the weights that it shards."""
    tables = [table for part in module.modules() for table in (part._forward_pre_hooks, part._forward_hooks)]
    kept = [dict(table) for table in tables]
    for table in tables:
        for key in [key for key, hook in table.items() if (hook.__module__ or "").startswith("deepspeed.")]:
            del table[key]
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.clear()
            table.update(hooks)


def _average_of(now: Tensor, saved: Tensor | None) -> Tensor:
    """Returns the average to start from: that of the checkpoint, else a copy of the weights."""
    if saved is not None:
        return saved.to(now.device)
    return now.float().clone() if now.is_floating_point() else now.clone()
