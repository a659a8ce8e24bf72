"""Ends a run with the weights of its best evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from arctic_training.callback.monitor import Monitor, MonitorConfig
from arctic_training.component import TrainerView
from arctic_training.engine.config import require_weights_in_memory
from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.engine.host_copy import host_copy
from arctic_training.engine.internals.parameters import local_tensor
from arctic_training.engine.replaced_weights import set_weights
from arctic_training.engine.zero import resharded
from arctic_training.errors.types import RecipeError
from arctic_training.logging import logger

Weights = dict[str, torch.Tensor]


class RestoreBestConfig(MonitorConfig):
    """Options of the callback `restore_best`."""


class RestoreBest(Monitor[RestoreBestConfig]):
    """Ends a run with the weights of its best evaluation in memory, and in what it exports at the end.

    Trained weights and buffers are kept in host memory and in checkpoints: at ZeRO stage 3 each rank keeps its shards.
    At the end of the run, unless it is stopped to be resumed, they replace those of the last step, and sections of type
    ``huggingface`` with ``save_end_of_training`` are saved again. Checkpoints that a run resumes from keep the last
    step; one that a program saves after the training has the best weights, with the moments of the last step. Where a
    callback `ema` has ``evaluate``, the averages that were evaluated are kept.
    """

    name = "restore_best"

    def __init__(self, config: RestoreBestConfig) -> None:
        super().__init__(config)
        self.weights: dict[str, Weights] = {}
        """The shard of this rank of the best weights of each trained role, on the CPU."""
        self.values: dict[str, float] = {}
        """All metrics of the best evaluation."""
        self._shares: Sequence[Mapping[str, Mapping[str, torch.Tensor]]] = []
        """The weights of the ranks that saved, until the engines are built for which they are sharded anew."""
        self._engines: Mapping[str, Engine] = {}
        self._averaged = False

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for weights that are not in memory, and for averages that are exported in any case."""
        averages = [one for one in trainer.config.callbacks if one.type == "ema"]
        if any(getattr(one, "export", False) for one in averages):
            raise RecipeError("callbacks.restore_best: a callback ema has export: true, and both replace what is saved")
        self._averaged = any(getattr(one, "evaluate", False) for one in averages)
        require_weights_in_memory(trainer.config, "callbacks.restore_best", "cannot be kept")

    def post_init(self, trainer: TrainerView) -> None:
        """Shards what ranks of another layout have saved."""
        self._engines = trainer.trainable_engines
        self._reshard()

    def observe(self, trainer: TrainerView, value: float, values: Mapping[str, float]) -> None:
        if self.waited:
            return
        self.values = dict(values)
        for role, engine in trainer.trainable_engines.items():
            with trainer.averaged(role, purpose="evaluate"):
                self.weights[role] = host_copy({name: local_tensor(one) for name, one in _held(engine).items()})

    def post_train(self, trainer: TrainerView) -> None:
        """Puts the best weights in place, and saves what is exported with them."""
        step = trainer.progress.step
        if trainer.stop_requested or not self.weights or (self.best_step == step and not self._averaged):
            return
        for role, engine in trainer.trainable_engines.items():
            assert isinstance(engine, TrainedEngine)
            set_weights(engine, self.weights[role])
        logger.success(f"the weights are those of step {self.best_step}: {self.metric} {self.best:.6g} is the best")
        exports = [one for one in trainer.checkpointers if not one.resumable and one.config.save_end_of_training]
        if due := [one for one in exports if one.config.enabled and one.saved_values(step) != self.values]:
            for checkpointer in due:
                checkpointer.record_metrics(self.values)
            trainer.checkpoint(due)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weights": self.weights, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict(state)
        self.weights, self.values = host_copy(dict(state["weights"])), dict(state["values"])

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Any]], /) -> None:
        """Restores the state from those of ranks of another layout."""
        super().load_state_dict(shares[0])
        self.values, self._shares = dict(shares[0]["values"]), [share["weights"] for share in shares]
        self._reshard()

    def _reshard(self) -> None:
        if not self._shares or not self._engines:
            return
        self.weights = {
            role: {
                name: host_copy(resharded([share[role][name] for share in self._shares], held))
                for name, held in _held(self._engines[role]).items()
            }
            for role in self._shares[0]
        }
        self._shares = []


def _held(engine: Engine) -> dict[str, torch.Tensor]:
    """Returns the trained parameters and the buffers of the engine's module, by name."""
    trained = ((name, one) for name, one in engine.module.named_parameters() if one.requires_grad)
    return {**dict(trained), **dict(engine.module.named_buffers())}
