"""The full weights of a model in a checkpoint of type deepspeed, whatever ranks and ZeRO stage saved it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from arctic_training.checkpoint.deepspeed import load_tensors, saved_ranks
from arctic_training.checkpoint.folder import read_manifest
from arctic_training.engine.averaging import average, averaging
from arctic_training.engine.sharded_state import JoinedState, ShardedState, model_parts, num_parts
from arctic_training.engine.zero import full_from_saved, gathered
from arctic_training.errors.types import CheckpointError


class ConsolidatedWeights(Mapping[str, Tensor]):
    """The parameters and persistent buffers of a role, by name; each is read from the disk when it is accessed.

    Parameters are in the dtype of the run; with an optimizer that keeps an average of them they are the average. With
    ``averaged`` they are those of the callback `ema`, in fp32.
    """

    def __init__(self, folder: Path, role: str = "model", *, averaged: bool = False) -> None:
        """Raises `CheckpointError` for a folder that is no complete checkpoint, or has not what is to be read."""
        manifest = read_manifest(folder)
        if role not in manifest.get("roles", {}):
            raise CheckpointError(f"{folder} holds no model {role!r}; it has {', '.join(manifest.get('roles', {}))}")
        if manifest.get("frozen"):
            raise CheckpointError(
                f"{folder} holds the trained weights alone (checkpoint.trainable_only), to resume from; use a "
                "checkpoint of type huggingface, or one that is saved without that key"
            )
        self.folder, stage, world = folder, int(manifest["roles"][role]), int(manifest["world"])
        saved = saved_ranks(folder, role, range(1))
        self._averaging, parts = averaging(saved[0].state["groups"]), num_parts(saved[0].state)
        if stage == 3 or (stage and self._averaging is not None):
            saved = saved_ranks(folder, role, range(world))
        elif parts > 1:
            saved = saved_ranks(folder, role, range(parts))
        self._sharded = JoinedState(model_parts(saved), {}, 0) if parts > 1 else ShardedState(saved)
        self._buffers: Mapping[str, Tensor] = saved[0].state["buffers"]
        self._shapes: dict[str, Sequence[int]] = dict(self._sharded.layout["parameters"])
        self._averages = self._read_averages(range(world)) if averaged else []

    def __getitem__(self, name: str) -> Tensor:
        if self._averages:
            shares = [share[name] for share in self._averages]
            return full_from_saved(shares, torch.Size(self._shapes[name])) if name in self._shapes else shares[0]
        if name in self._buffers:
            return self._buffers[name]
        full = self._sharded.weight(name)
        if self._averaging is not None:
            full = full.clone().flatten()
            for fragment in self._sharded.fragments.get(name, ()):
                if self._sharded.optimizer_state(fragment):  # none before the first step
                    y, z = self._sharded.elements(fragment), self._sharded.elements(fragment, "z")
                    full[fragment.start : fragment.start + fragment.size] = average(y, z, self._averaging)
        return full.view(list(self._shapes[name]))

    def __iter__(self) -> Iterator[str]:
        yield from self._shapes
        yield from self._buffers

    def __len__(self) -> int:
        return len(self._shapes) + len(self._buffers)

    def _read_averages(self, ranks: range) -> list[Mapping[str, Tensor]]:
        """Returns what each rank saved of the averages of these parameters."""
        runs = [load_tensors(self.folder / f"run_{rank}.pt") for rank in ranks]
        for part in (name for name in runs[0] if name.startswith("callback.ema")):
            if self._shapes.keys() <= runs[0][part]["weights"].keys():
                return [run[part]["weights"] for run in runs]
        raise CheckpointError(f"{self.folder} holds no average of the weights: the run had no callback ema for them")


def load_consolidated(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies ``weights`` (by name, of any floating dtype) into the parameters and persistent buffers of ``module``, one
    at a time, at any ZeRO stage. Raises `CheckpointError` for a name or shape that differs."""
    persistent = module.state_dict(keep_vars=True)
    held = dict(module.named_parameters()) | {
        name: buffer for name, buffer in module.named_buffers() if name in persistent
    }
    if odd := sorted(held.keys() ^ set(weights)):
        raise CheckpointError(f"the checkpoint does not fit the model of its recipe: {', '.join(odd[:3])} differ")
    for name, tensor in held.items():
        with gathered([tensor], modify=True), torch.no_grad():
            if (weight := weights[name]).shape != tensor.shape:
                shapes = f"{list(weight.shape)} in the checkpoint, {list(tensor.shape)} by its recipe"
                raise CheckpointError(f"the checkpoint does not fit the model of its recipe: {name} is {shapes}")
            tensor.copy_(weight)
