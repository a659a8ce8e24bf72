"""Short runs of a recipe, in a temporary folder, and what is compared of them."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from arctic_training.config.get_config import get_config
from arctic_training.distributed import collectives, process_group
from arctic_training.engine import snapshot
from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.engine.zero import full_parameter
from arctic_training.registry import lookup
from arctic_training.trainer.throughput import MEASURED
from arctic_training.trainer.trainer import Trainer

Recipe = str | Path | Mapping[str, object]
"""The path of a recipe, or its content."""

_QUIET: dict[str, object] = {
    "trackers": [],
    "wandb": {"enable": False},
    "train_log_metrics_path": None,
    "loss_log_interval": 0,
    "train_log_iter_interval": 1,
    "logger": {"level": "ERROR"},
    "resume": None,
    "exit_iteration": 0,
    "exit_iteration_this_run": 0,
    "kill_switch_path": None,
    "time_limit": 0,
}
"""A short run logs every step and nothing else."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a folder, the same on all ranks, which is removed when all have left the block."""
    process_group.init_process_group()
    own = tempfile.mkdtemp(prefix="arctic_training_") if process_group.is_main() else ""
    try:
        yield Path(collectives.broadcast_object(own))
        process_group.barrier()
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


class Metrics(dict[tuple[str, int], dict[str, float]]):
    """Records of what a run logged and evaluated, by event and step."""

    def listen(self, trainer: Trainer) -> None:
        """Records what ``trainer`` logs and evaluates."""

        def record(event: str) -> Callable[[Trainer, dict[str, float]], None]:
            def listener(of: Trainer, values: dict[str, float]) -> None:
                self[event, of.progress.step] = {name: one for name, one in values.items() if name not in MEASURED}

            return listener

        for event in ("log", "evaluate"):
            trainer.listen(f"post-{event}", record(event))


def build(recipe: Recipe, overrides: Sequence[str], settings: Mapping[str, object]) -> Trainer:
    """Returns the trainer of a recipe; ``settings`` replace its keys, by their paths. Raises `InputError`."""
    words = [f"{name}={json.dumps(value)}" for name, value in (_QUIET | dict(settings)).items()]
    config = get_config(recipe, [*overrides, *words])
    trainer = lookup("trainer", config.type)
    assert issubclass(trainer, Trainer)
    return trainer(config)


def trained(engine: Engine) -> TrainedEngine:
    """Returns the engine of a role that is trained, as what it is."""
    assert isinstance(engine, TrainedEngine)
    return engine


def final_state(trainer: Trainer) -> dict[str, dict[str, object]]:
    """Returns copies of the weights, in full, of the engines' state on this rank, and of the state of the run."""
    engines = {role: trained(engine) for role, engine in trainer.trainable_engines.items()}
    return {
        "progress": trainer.progress.state_dict(),
        "weights": {
            role: {name: full_parameter(parameter) for name, parameter in engine.module.named_parameters()}
            for role, engine in engines.items()
        },
        "engine": {role: copy.deepcopy(snapshot.snapshot(engine)) for role, engine in engines.items()},
        "state": copy.deepcopy(trainer.state.state_dict()),
    }


def first_difference(expected: object, actual: object, where: str = "") -> str:
    """Returns where two nested values differ first, and how; empty when they are equal to the bit."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        if odd := sorted(map(str, expected.keys() ^ actual.keys())):
            return f"{where}: {odd[0]} is in one of them only"
        pairs = [(f"{where}.{name}" if where else str(name), expected[name], actual[name]) for name in expected]
    elif isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)) and len(expected) == len(actual):
        pairs = [(f"{where}.{n}", *both) for n, both in enumerate(zip(expected, actual, strict=True))]
    elif isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        return _tensor_difference(expected, actual, where)
    else:
        equal = expected == actual or (expected != expected and actual != actual)  # NaN is unequal to itself
        return "" if equal else f"{where}: {expected!r} and {actual!r}"
    return next((difference for name, one, other in pairs if (difference := first_difference(one, other, name))), "")


def _tensor_difference(expected: torch.Tensor, actual: torch.Tensor, where: str) -> str:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return f"{where}: {expected.dtype} {list(expected.shape)} and {actual.dtype} {list(actual.shape)}"
    unequal = (expected != actual) & ~(expected.isnan() & actual.isnan())
    if not (count := int(unequal.sum())):
        return ""
    largest = float((expected.double() - actual.double()).abs().nan_to_num().max())
    return f"{where}: {count} of {expected.numel()} elements differ, by {largest:.3g} at most"
