"""Finds what a path of the command line means: a model, an adapter, a checkpoint, or the newest checkpoint of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.retention import BEST
from arctic_training.config.checks.hub import unavailable
from arctic_training.errors.types import CheckpointError, InputError
from arctic_training.model.pretrained_adapter import is_adapter

NO_AVERAGE = "only checkpoints of type deepspeed hold an average of the weights beside them"
RECIPE = "recipe.yaml"
"""The recipe in a run folder."""


@dataclass(frozen=True)
class SavedModel:
    """A model that can be loaded."""

    name: str
    """Its folder, its ``.gguf`` file, or its name on the hub."""
    kind: Literal["model", "adapter", "deepspeed"]
    """What is there: a model of transformers, an adapter of PEFT, or a checkpoint of type deepspeed."""
    run_dir: Path | None = None
    """The folder of the run that saved it, where that is known."""
    step: int | None = None
    """The step after which it was saved, where that is known."""

    @property
    def recipe(self) -> Path | None:
        """The recipe of the run that saved it, where there is one."""
        path = self.run_dir / RECIPE if self.run_dir is not None else None
        return path if path is not None and path.is_file() else None


def find_saved_model(name: str, *, best: bool = False) -> SavedModel:
    """Returns the model that ``name`` means: a folder that transformers or PEFT can load, a checkpoint of a run, or a
    run folder or folder of checkpoints, of which it is the newest complete one, or with ``best`` the best.

    What is no folder is a name on the hub, or a ``.gguf`` file. Raises `InputError` for a folder of anything else, and
    for a name where the hub does not answer, and `CheckpointError` for a checkpoint that is damaged.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if why := unavailable(name):
            raise InputError(f"{name}: {why}")
        return SavedModel(name, "model")
    if (path / disk.MANIFEST).exists():
        return _checkpoint(path)
    if (path / "config.json").exists():
        return SavedModel(str(path), "model")
    if is_adapter(str(path)):
        return SavedModel(str(path), "adapter")
    roots = [path] if disk.list_steps(path) else sorted((path / "checkpoints").glob("*"))
    found_steps = sorted(_complete(roots, best=best), key=lambda one: (one[0], one[1].parent.name == "huggingface"))
    if not found_steps:
        which = "no checkpoint in it is marked as the best" if best else "no complete checkpoint in it"
        raise InputError(f"{name}: {which}, and no model; name a model, an adapter, a checkpoint or a run")
    return _checkpoint(found_steps[-1][1])


def _complete(roots: list[Path], *, best: bool) -> Iterator[tuple[int, Path]]:
    """Yields step and folder of the complete checkpoints in ``roots``, or of the best one of each."""
    for root in roots:
        steps = disk.list_steps(root)
        if best:
            named = (root / BEST).read_text(encoding="utf-8").strip() if (root / BEST).is_file() else ""
            steps = [step for step in steps if disk.step_folder(root, step).name == named]
        for step in steps:
            folder = disk.step_folder(root, step)
            if disk.verify(folder, hashes=False) is None:
                yield step, folder


def _checkpoint(folder: Path) -> SavedModel:
    """Returns a checkpoint of a run. Raises `CheckpointError` for one that is damaged."""
    if damage := disk.verify(folder, hashes=False):
        raise CheckpointError(damage)
    manifest, absolute = disk.read_manifest(folder), folder.absolute()
    run_dir = next((one for one in absolute.parents if (one / "environment.json").is_file()), None)
    step = int(manifest["step"])
    if manifest.get("type") == "deepspeed":
        return SavedModel(str(folder), "deepspeed", run_dir, step)
    if is_adapter(str(folder)):
        return SavedModel(str(folder), "adapter", run_dir, step)
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: of type {manifest.get('type')!r}, without a model of transformers")
    return SavedModel(str(folder), "model", run_dir, step)
