"""Finds what the name of a model means: a model, an adapter, a checkpoint, or the newest checkpoint of a run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arctic_training.checkpoint import folder as disk
from arctic_training.config.checks.files import invalid_path, outside_root, unreadable
from arctic_training.config.checks.hub import unavailable
from arctic_training.errors.types import ArcticError, CheckpointError, InputError

NO_AVERAGE = "only checkpoints of type deepspeed hold an average of the weights beside them"
RECIPE = "recipe.yaml"
"""The recipe in a run folder."""
ADAPTER, CONFIG = "adapter_config.json", "config.json"
"""The config of an adapter, and of a model."""
_ENVIRONMENT = "environment.json"
"""A file of every run folder, and of no other folder."""


@dataclass(frozen=True)
class SavedModel:
    """A model that can be loaded."""

    name: str
    """Its folder, its ``.gguf`` file, or its name on the hub."""
    kind: Literal["model", "adapter", "deepspeed"]
    """A model of transformers, an adapter of PEFT, or a checkpoint of type deepspeed."""
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
    """Returns the model that ``name`` means: a folder that transformers or PEFT can load, a checkpoint of a run, or
    what `find_checkpoint` finds.

    What is no folder is a name on the hub, or a ``.gguf`` file. Raises `InputError` for a folder of anything else, and
    for a name where the hub does not answer, and `CheckpointError` for a checkpoint that is damaged.
    """
    name = find_checkpoint(name, best=best)
    path = Path(name).expanduser()
    if not path.is_dir():
        if why := unavailable(name):
            raise InputError(f"{name}: {why}")
        return SavedModel(name, "model")
    if (path / disk.MANIFEST).exists():
        return _checkpoint(path)
    if (path / CONFIG).exists():
        return SavedModel(str(path), "model")
    if is_adapter(str(path)):
        return SavedModel(str(path), "adapter")
    raise InputError(f"{name}: {_no_checkpoint(best=False)}")


def find_checkpoint(name: str, *, best: bool = False) -> str:
    """Returns the newest complete checkpoint of a run, or with ``best`` the best; ``name`` is a run folder or a folder
    of checkpoints, or the file ``best`` or ``latest`` of one, which names the checkpoint.

    Returns ``name`` for anything else. Raises `InputError` where there is no such checkpoint.
    """
    if invalid_path(name):
        return name
    path = Path(name).expanduser()
    if path.name in (disk.BEST, disk.LATEST) and path.is_file():
        if (step := disk.named_step(path.parent, path.name)) is None:
            raise InputError(f"{name}: names no checkpoint")
        folder = disk.step_folder(path.parent, step)
        if damage := disk.verify(folder, hashes=False):
            raise InputError(f"{name}: {damage}")
    elif _is_run(path):
        roots = [path] if disk.list_steps(path) else sorted((path / "checkpoints").glob("*"))
        complete = sorted(_complete(roots, best=best), key=lambda one: (one[0], one[1].parent.name == "huggingface"))
        if not complete:
            damaged = (disk.verify(disk.step_folder(root, step)) for root in roots for step in disk.newest_first(root))
            why = next(filter(None, damaged), "")
            raise InputError(f"{name}: {_no_checkpoint(best=best)}" + (f" ({why})" if why else ""))
        folder = complete[-1][1]
    else:
        return name
    if problem := outside_root(folder):
        raise InputError(problem)
    return str(folder)


def find_model(name: str) -> str:
    """Returns what a recipe loads a model or tokenizer from that it calls ``name``: see `find_checkpoint`.

    Raises `InputError` for a checkpoint that no recipe loads from, and `CheckpointError`.
    """
    folder = find_checkpoint(name)
    manifest = os.path.join(os.path.expanduser(folder), disk.MANIFEST)  # os.path also takes what no file can be named
    if os.path.exists(manifest) and disk.read_manifest(Path(manifest).parent).get("type") == "deepspeed":
        which = "a checkpoint" if folder == name else f"its newest checkpoint, {folder}, is"
        raise InputError(
            f"{name}: {which} of type deepspeed, which only its own run loads; write it as a model: "
            f"arctic_training export {folder} -o DIR"
        )
    return folder


def unloadable(name: str, *, holds: str = "") -> str:
    """Returns why no model or tokenizer ``name`` can be loaded from a folder that ``holds`` a file of that name; empty
    when it can, or when it may be on the hub."""
    try:
        return unreadable(find_model(name), holds=holds)
    except ArcticError as error:
        return str(error)


def is_adapter(name: str) -> bool:
    """Returns whether ``name`` is a folder that holds an adapter and no model."""
    folder = os.path.expanduser(name)
    return os.path.isfile(os.path.join(folder, ADAPTER)) and not os.path.exists(os.path.join(folder, CONFIG))


def _is_run(path: Path) -> bool:
    """Returns whether ``path`` is a run folder, or a folder of checkpoints, and no model or checkpoint itself."""
    if not path.is_dir() or any((path / one).exists() for one in (disk.MANIFEST, CONFIG, ADAPTER)):
        return False
    return (
        (path / _ENVIRONMENT).is_file() or bool(disk.list_steps(path)) or any((path / "checkpoints").glob("*/step_*"))
    )


def _no_checkpoint(*, best: bool) -> str:
    which = "no checkpoint in it is marked as the best" if best else "no complete checkpoint in it"
    return f"{which}, and no model; name a model, an adapter, a checkpoint or a run"


def _complete(roots: list[Path], *, best: bool) -> Iterator[tuple[int, Path]]:
    """Yields step and folder of the newest complete checkpoint of each of ``roots``, or of its best one.

    Steps after the one that was saved last are of an earlier run, in whose folder another began anew.
    """
    for root in roots:
        steps = disk.newest_first(root)
        if best:
            steps = [step for step in steps if step == disk.named_step(root, disk.BEST)]
        complete = (one for one in steps if disk.verify(disk.step_folder(root, one), hashes=False) is None)
        if (step := next(complete, None)) is not None:
            yield step, disk.step_folder(root, step)


def _checkpoint(folder: Path) -> SavedModel:
    """Returns a checkpoint of a run. Raises `CheckpointError` for one that is damaged."""
    if damage := disk.verify(folder, hashes=False):
        raise CheckpointError(damage)
    manifest, absolute = disk.read_manifest(folder), folder.absolute()
    run_dir = next((one for one in absolute.parents if (one / _ENVIRONMENT).is_file()), None)
    step = int(manifest["step"])
    if manifest.get("type") == "deepspeed":
        return SavedModel(str(folder), "deepspeed", run_dir, step)
    if is_adapter(str(folder)):
        return SavedModel(str(folder), "adapter", run_dir, step)
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder}: of type {manifest.get('type')!r}, without a model of transformers")
    return SavedModel(str(folder), "model", run_dir, step)
