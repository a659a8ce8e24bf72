"""Checkpoints that a run goes on from exactly: weights, optimizer, schedule, position, randomness, callbacks.

    step_<N>/run_<rank>.pt        the run's state on each process
    step_<N>/<role>_<rank>.pt     an engine's state on each process
    step_<N>/<role>.safetensors   its weights; at ZeRO stage 3 ``<role>_<rank>.safetensors``, the part of each process

Another number of processes, or another ZeRO stage, goes on from the shares of all. Nothing in it is a pickle of
anything but tensors, numbers, strings, lists and mappings.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.checkpoint.folder import disk_errors
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.deepspeed import without_auto
from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.engine.resharding import Share, load_resharded, require_parts
from arctic_training.engine.snapshot import layout, require_fit, require_plain, restore, snapshot, weights
from arctic_training.errors.types import CheckpointError, RecipeError, ResumeError
from arctic_training.logging import logger
from arctic_training.state import RunState


class DeepSpeedCheckpointConfig(CheckpointConfig):
    type: str = "deepspeed"


class DeepSpeedCheckpointEngine(Checkpointer[DeepSpeedCheckpointConfig]):
    """Everything that a run needs to go on exactly where it was."""

    name = "deepspeed"
    config_type = DeepSpeedCheckpointConfig

    def dry_run(self, models: Mapping[str, nn.Module]) -> None:
        zero = without_auto(self.trainer.config.deepspeed).get("zero_optimization", {})
        nvme = [key for key in ("offload_param", "offload_optimizer") if zero.get(key, {}).get("device") == "nvme"]
        apart = [key for key in ("zenflow", "zero_hpz_partition_size") if zero.get(key, 1) not in (1, None)]
        if nvme or apart:
            where = f"deepspeed.zero_optimization.{[*nvme, *apart][0]}"
            raise RecipeError(f"{where}: keeps state that checkpoint type deepspeed cannot save; leave one of them out")

    def check_state(self, state: RunState) -> None:
        try:
            require_plain(state.state_dict(), "the run's state")
        except CheckpointError as error:
            raise RecipeError(f"checkpoint: type deepspeed could not save this run: {error}") from error

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any]:
        rank = process_group.rank()
        run = state.state_dict()
        require_plain(run, "the run's state")
        _save(run, folder / f"run_{rank}.pt")
        stages = {}
        for role, engine in _trained(engines).items():
            told = snapshot(engine)
            _save(told, folder / f"{role}_{rank}.pt")
            stages[role] = told["layout"]["stage"]
            if stages[role] == 3 or rank == 0:
                _save_tensors(weights(engine), _weights_file(folder, role, stages[role], rank))
        return {"roles": stages, "progress": self.trainer.progress.state_dict()}

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        if odd := sorted(engines.keys() ^ manifest["roles"].keys()):
            raise ResumeError(f"{folder} and this run disagree about the trained models: {', '.join(odd)}")
        world, rank, here = int(manifest["world"]), process_group.rank(), process_group.world_size()
        mine = [rank if rank < world else 0]
        loads: list[Callable[[], None]] = []
        moved = world != here
        for role, engine in _trained(engines).items():
            stage, now = manifest["roles"][role], layout(engine)
            as_it_is = stage == now["stage"] and (world == here or stage == 0)  # at stage 0 each has everything
            shares = _shares(folder, role, stage, mine if as_it_is else range(world))
            require_fit(engine, *shares[0])
            if as_it_is:
                loads.append(partial(restore, engine, *shares[0]))
            else:
                require_parts(shares, now["groups"])
                loads.append(partial(load_resharded, engine, shares))
            moved = moved or stage != now["stage"]
            _tell(folder, role, shares[0].state, engine)
        runs = [_load(folder / f"run_{saver}.pt") for saver in (range(world) if moved else mine)]
        state.require_fit(runs[0])
        for load in loads:
            load()
        if moved:
            state.load_sharded_state_dict(runs)
        else:
            state.load_state_dict(runs[0])


def _trained(engines: Mapping[str, Engine]) -> dict[str, TrainedEngine]:
    return {role: engine for role, engine in engines.items() if isinstance(engine, TrainedEngine)}


def _weights_file(folder: Path, role: str, stage: int, rank: int) -> Path:
    return folder / (f"{role}_{rank}.safetensors" if stage == 3 else f"{role}.safetensors")


def _shares(folder: Path, role: str, stage: int, ranks: Iterable[int]) -> list[Share]:
    """What these processes saved of an engine; the tensors stay on disk."""
    files = [(folder / f"{role}_{rank}.pt", _weights_file(folder, role, stage, rank)) for rank in ranks]
    return [Share(_load(state), _Tensors(tensors)) for state, tensors in files]


def _tell(folder: Path, role: str, saved: Mapping[str, Any], engine: TrainedEngine) -> None:
    there, here = saved["layout"], layout(engine)
    if not process_group.is_main():
        return
    if any(there[key] != here[key] for key in ("stage", "processes")):
        was, now = (f"ZeRO stage {one['stage']}, {one['processes']} processes" for one in (there, here))
        logger.success(f"{folder}: {role} was saved at {was}, and goes on at {now}")


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


class _Tensors(Mapping[str, torch.Tensor]):
    """A file of weights, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        try:
            self._file: Any = safe_open(path, framework="pt")
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())
