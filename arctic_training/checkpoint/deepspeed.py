"""Checkpoints from which a run resumes exactly: weights, optimizer, schedule, position, randomness, callbacks.

    step_<N>/run_<rank>.pt        the `RunState` of each rank
    step_<N>/<role>_<rank>.pt     the `snapshot` of an engine on each rank
    step_<N>/<role>.safetensors   its weights; at ZeRO stage 3 ``<role>_<rank>.safetensors``, the shards of each rank,
                                  and with tensor parallelism the parts of the first ranks

Another number of ranks, or another ZeRO stage, resumes from the files of all ranks. Nothing in it is a pickle of
anything but tensors, numbers, strings, lists and mappings.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arctic_training.checkpoint.background import Staged
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.checkpoint.folder import disk_errors
from arctic_training.component import TrainerView
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.deepspeed import without_auto
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.engine.host_copy import host_copy
from arctic_training.engine.resharding import load_resharded, require_reshardable
from arctic_training.engine.sharded_state import SavedRank, num_parts
from arctic_training.engine.snapshot import layout, require_fit, require_plain, restore, snapshot, weights
from arctic_training.engine.weights_fingerprint import weights_fingerprint
from arctic_training.errors.types import CheckpointError, RecipeError, ResumeError
from arctic_training.logging import logger
from arctic_training.state import RunState


class DeepSpeedCheckpointConfig(CheckpointConfig):
    """``checkpoint: {type: deepspeed}``."""

    type: str = "deepspeed"
    trainable_only: bool = False
    """Leave out the weights that are not trained, such as those below an adapter: a run that resumes loads them as it
    did at its start. Such a checkpoint is for resuming alone; type huggingface saves the adapter beside it."""


class DeepSpeedCheckpointEngine(Checkpointer[DeepSpeedCheckpointConfig]):
    """Saves everything that a run needs to resume exactly where it was."""

    name = "deepspeed"

    def __init__(self, trainer: TrainerView, config: DeepSpeedCheckpointConfig) -> None:
        super().__init__(trainer, config)
        self._prints: dict[str, str] = {}

    def dry_run(self, models: Mapping[str, nn.Module]) -> None:
        zero = without_auto(self.trainer.config.deepspeed).get("zero_optimization", {})
        on_nvme = [key for key in ("offload_param", "offload_optimizer") if zero.get(key, {}).get("device") == "nvme"]
        unsupported = [key for key in ("zenflow", "zero_hpz_partition_size") if zero.get(key, 1) not in (1, None)]
        if keys := [*on_nvme, *unsupported]:
            raise RecipeError(
                f"deepspeed.zero_optimization.{keys[0]}: keeps state that checkpoint type deepspeed cannot save; "
                "remove one of them"
            )
        for role, model in models.items() if self.config.trainable_only else ():
            changes: tuple[str, ...] = getattr(model, "base_changes", ())
            if changes:
                raise RecipeError(
                    f"checkpoint.trainable_only: below its adapter, {role} is not what {role}.name_or_path loads "
                    f"({', '.join(changes)}); remove it"
                )

    def check_state(self, state: RunState) -> None:
        try:
            require_plain(state.state_dict(), "the run's state")
        except CheckpointError as error:
            raise RecipeError(f"checkpoint: type deepspeed cannot save this run: {error}") from error

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any]:
        files, entries = self._contents(folder, engines, state)
        _write(files)
        return entries

    def stage(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Staged:
        files, entries = self._contents(folder, engines, state)
        copies = {path: host_copy(content) for path, content in files.items()}
        return Staged(lambda: _write(copies), entries)

    def _contents(
        self, folder: Path, engines: Mapping[str, Engine], state: RunState
    ) -> tuple[dict[Path, Mapping[str, Any]], dict[str, Any]]:
        """Returns the contents of this rank's files, whose tensors are the engines' own, and what the manifest says."""
        rank = process_group.rank()
        run = state.state_dict()
        require_plain(run, "the run's state")
        files: dict[Path, Mapping[str, Any]] = {folder / f"run_{rank}.pt": run}
        stages = {}
        for role, engine in _trained(engines).items():
            files[folder / f"{role}_{rank}.pt"] = own = snapshot(engine)
            stages[role] = own["layout"]["stage"]
            if stages[role] == 3 or rank < num_parts(own):
                only = self.config.trainable_only
                files[_weights_file(folder, role, own, rank)] = weights(engine, trainable_only=only)
        entries = {"roles": stages, "progress": self.trainer.progress.state_dict()}
        return files, entries | ({"frozen": self._frozen(engines)} if self.config.trainable_only else {})

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        saved_world, rank, world = int(manifest["world"]), process_group.rank(), process_group.world_size()
        if manifest.get("frozen") and (frozen := self._frozen(engines)) != manifest["frozen"]:
            other = ", ".join(role for role, one in manifest["frozen"].items() if one != frozen.get(role))
            raise ResumeError(
                f"{folder} holds the trained weights alone, and those of {other} that are not trained differ from the "
                "ones of the run that saved it; give the same model"
            )
        own_rank = [rank if rank < saved_world else 0]
        loads: list[Callable[[], None]] = []
        reshard_run = saved_world != world
        for role, engine in _trained(engines).items():
            stage, now = manifest["roles"][role], layout(engine)
            saved = saved_ranks(folder, role, own_rank)
            require_fit(engine, *saved[0])
            divided = saved[0].state["layout"].get("divided", {})
            same_layout = stage == now["stage"] and (saved_world == world or stage == 0)  # at stage 0 each rank has all
            same_layout = same_layout and divided == now["divided"]
            if same_layout:
                loads.append(partial(restore, engine, *saved[0]))
            else:
                saved = saved_ranks(folder, role, range(saved_world))
                require_reshardable(saved, now["groups"])
                loads.append(partial(load_resharded, engine, saved))
            reshard_run = reshard_run or stage != now["stage"] or divided != now["divided"]
            _log_layout(folder, role, saved[0].state, engine)
        runs = [load_tensors(folder / f"run_{saver}.pt") for saver in (range(saved_world) if reshard_run else own_rank)]
        state.require_fit(runs[0])
        for load in loads:
            load()
        if reshard_run:
            state.load_sharded_state_dict(runs)
        else:
            state.load_state_dict(runs[0])

    def _frozen(self, engines: Mapping[str, Engine]) -> dict[str, str]:
        """Returns the digest of the weights that are not trained, by role; computed once, since they never change."""
        for role, engine in _trained(engines).items() if not self._prints else ():
            if not all(one.requires_grad for one in engine.module.parameters()):
                self._prints[role] = weights_fingerprint(engine.module, frozen_alone=True)
        return collectives.broadcast_object(self._prints)


def _trained(engines: Mapping[str, Engine]) -> dict[str, TrainedEngine]:
    return {role: engine for role, engine in engines.items() if isinstance(engine, TrainedEngine)}


def _weights_file(folder: Path, role: str, state: Mapping[str, Any], rank: int) -> Path:
    """Returns the file with the weights of the snapshot ``state`` of ``rank``."""
    if state["layout"]["stage"] == 3:
        return folder / f"{role}_{rank}.safetensors"
    parts = num_parts(state)
    return folder / (f"{role}_{rank % parts}.safetensors" if parts > 1 else f"{role}.safetensors")


def saved_ranks(folder: Path, role: str, ranks: Iterable[int]) -> list[SavedRank]:
    """Returns what these ranks saved of the engine of ``role``; the tensors stay on disk.

    Raises `CheckpointError` for a file that cannot be read.
    """
    saved = []
    for rank in ranks:
        state = load_tensors(folder / f"{role}_{rank}.pt")
        saved.append(SavedRank(state, _Tensors(_weights_file(folder, role, state, rank))))
    return saved


def _log_layout(folder: Path, role: str, saved: Mapping[str, Any], engine: TrainedEngine) -> None:
    before, now = (_described(one) for one in (saved, {"layout": layout(engine)}))
    if before != now and process_group.is_main():
        logger.success(f"{folder}: {role} was saved with {before} and is resumed with {now}")


def _described(state: Mapping[str, Any]) -> str:
    own, parts = state["layout"], num_parts(state)
    text = f"ZeRO stage {own['stage']} on {own['processes']} processes"
    return f"{text}, {parts} to a model" if parts > 1 else text


def _write(files: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    from safetensors.torch import save_file

    for path, content in files.items():
        with disk_errors():
            if path.suffix == ".safetensors":
                save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
            else:
                with open(path, "wb") as file:
                    torch.save(content, file)
    return [path.name for path in files]


def load_tensors(path: Path) -> dict[str, Any]:
    """Loads lazily: tensors stay on disk until they are copied. A pickle of anything else is refused, not run.

    Raises `CheckpointError`.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as tensors and numbers: {error}") from error
    return state


class _Tensors(Mapping[str, torch.Tensor]):
    """The weights in a safetensors file, each read when it is accessed."""

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
