"""The exponential moving average of a network's weights."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.engine.config import require_weights_in_memory
from arctic_training.engine.internals.parameters import local_tensor
from arctic_training.engine.zero import resharded
from arctic_training.errors.types import RecipeError


class EMAConfig(ComponentConfig):
    """Options of the callback `ema`."""

    role: str = "model"
    """The role whose weights are averaged."""
    decay: float = Field(default=0.999, ge=0, lt=1)
    """Weight of the old average in each step."""
    warmup: bool = True
    """Start with the smaller decay min(decay, (1 + steps) / (10 + steps))."""
    evaluate: Annotated[bool, RESUME_SAFE] = False
    """Evaluate the average in place of the weights themselves: its loss, and what evaluators measure."""
    export: Annotated[bool, RESUME_SAFE] = False
    """Write the average into checkpoints of type ``huggingface``, in place of the weights themselves."""


class EMA(Callback[EMAConfig]):
    """The exponential moving average of the weights, in fp32, updated after every step and saved in checkpoints.

    ``with trainer.averaged(role)`` puts it in the place of the weights. Each rank averages what it holds of them: all,
    or its shard under ZeRO stage 3.
    """

    name = "ema"

    def __init__(self, config: EMAConfig) -> None:
        super().__init__(config)
        self.steps = 0
        self.weights: dict[str, Tensor] = {}
        self._module: torch.nn.Module | None = None
        self._shares: Sequence[Mapping[str, Tensor]] = []
        """The state of the ranks that saved, until the module is built for which it is sharded anew."""

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a role that is not trained, and for weights that are not in memory."""
        if self.config.role not in trainer.trained_roles:
            known = ", ".join(trainer.trained_roles)
            raise RecipeError(f"callbacks.ema.role: {self.config.role!r} is not trained here; there are: {known}")
        require_weights_in_memory(trainer.config, "callbacks.ema", "cannot be averaged")

    def post_init(self, trainer: TrainerView) -> None:
        """Starts from the weights or a checkpoint."""
        self._module = trainer.engines[self.config.role].module
        self._place_averages()

    def pre_after_update(self, trainer: TrainerView) -> None:
        """Updates the average before the evaluations and checkpoints of this step."""
        decay = self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        now = _state(trainer.engines[self.config.role].module)
        averages, counts = [name for name in now if now[name].is_floating_point()], now.keys()
        torch._foreach_lerp_([self.weights[n] for n in averages], [now[n].float() for n in averages], 1 - decay)
        for name in counts - set(averages):
            self.weights[name].copy_(now[name])

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
            self.weights = {name: resharded([share[name] for share in self._shares], value) for name, value in held}
            self._shares = []
        now = _state(self._module)
        self.weights = {name: _average_of(value, self.weights.get(name)) for name, value in now.items()}


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Returns what this rank holds of the weights."""
    held = (*module.named_parameters(), *module.named_buffers())
    return {name: local_tensor(value) for name, value in held}


def _average_of(now: Tensor, saved: Tensor | None) -> Tensor:
    """Returns the average to start from: that of the checkpoint, else a copy of the weights."""
    if saved is not None:
        return saved.to(now.device)
    return now.float().clone() if now.is_floating_point() else now.clone()
