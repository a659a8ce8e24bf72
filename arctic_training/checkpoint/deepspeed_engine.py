"""Checkpoints that a run goes on from exactly: weights, optimizer, schedule, position, randomness, callbacks.

    step_<N>/run_<rank>.pt        the run's state on each process
    step_<N>/<role>_<rank>.pt     an engine's state on each process
    step_<N>/<role>.safetensors   its weights; at ZeRO stage 3 ``<role>_<rank>.safetensors``, the part of each process

Nothing in it is a pickle of anything but tensors, numbers, strings, lists and mappings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from arctic_training import distributed
from arctic_training.checkpoint.engine import CheckpointEngine
from arctic_training.checkpoint.folder import disk_errors
from arctic_training.config.checkpoint import CheckpointConfig
from arctic_training.config.deepspeed import plain
from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.engine.snapshot import require_fit, require_plain, restore, snapshot, weights
from arctic_training.errors import CheckpointError, RecipeError, ResumeError
from arctic_training.state import RunState


class DeepSpeedCheckpointConfig(CheckpointConfig):
    type: str = "deepspeed"


class DeepSpeedCheckpointEngine(CheckpointEngine[DeepSpeedCheckpointConfig]):
    """Everything that a run needs to go on exactly where it was."""

    name = "deepspeed"
    config_type = DeepSpeedCheckpointConfig
    resumable = True

    def __call__(self) -> Self:
        zero = plain(self.trainer.config.deepspeed).get("zero_optimization", {})
        nvme = [key for key in ("offload_param", "offload_optimizer") if zero.get(key, {}).get("device") == "nvme"]
        apart = [key for key in ("zenflow", "zero_hpz_partition_size") if zero.get(key, 1) not in (1, None)]
        if nvme or apart:
            where = f"deepspeed.zero_optimization.{[*nvme, *apart][0]}"
            raise RecipeError(f"{where}: keeps state that checkpoint type deepspeed cannot save; leave one of them out")
        return super().__call__()

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any]:
        rank = distributed.rank()
        run = state.state_dict()
        require_plain(run, "the run's state")
        _save(run, folder / f"run_{rank}.pt")
        stages = {}
        for role, engine in _trained(engines).items():
            told = snapshot(engine)
            _save(told, folder / f"{role}_{rank}.pt")
            stages[role] = told["layout"]["stage"]
            if stages[role] == 3 or rank == 0:
                _save_tensors(weights(engine), _weights_file(folder, role, stages[role]))
        return {"roles": stages, "progress": self.trainer.progress.state_dict()}

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        if (there := manifest["world"]) != (here := distributed.world_size()):
            raise ResumeError(f"{folder} was saved by {there} processes, and this run has {here}")
        if odd := sorted(engines.keys() ^ manifest["roles"].keys()):
            raise ResumeError(f"{folder} and this run disagree about the trained models: {', '.join(odd)}")
        rank = distributed.rank()
        run = _load(folder / f"run_{rank}.pt")
        state.require_fit(run)
        saved = {}
        for role, engine in _trained(engines).items():
            weights_file = _weights_file(folder, role, manifest["roles"][role])
            saved[role] = (engine, _load(folder / f"{role}_{rank}.pt"), _load_tensors(weights_file))
        for part in saved.values():
            require_fit(*part)
        for part in saved.values():
            restore(*part)
        state.load_state_dict(run)


def _trained(engines: Mapping[str, Engine]) -> dict[str, TrainedEngine]:
    return {role: engine for role, engine in engines.items() if isinstance(engine, TrainedEngine)}


def _weights_file(folder: Path, role: str, stage: int) -> Path:
    return folder / (f"{role}_{distributed.rank()}.safetensors" if stage == 3 else f"{role}.safetensors")


def _save(value: Any, path: Path) -> None:
    with disk_errors(), open(path, "wb") as file:
        torch.save(value, file)


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with disk_errors():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _load(path: Path) -> Any:
    """Tensors stay on disk until they are copied. A pickle of anything else is refused, and not run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as tensors and numbers: {error}") from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
