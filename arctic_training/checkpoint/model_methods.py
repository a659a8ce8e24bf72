"""Checkpoint engines in the way of ArcticTraining 0.8, with ``save(self, model)`` and ``load(self, model)``."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from arctic_training.checkpoint.folder import disk_errors
from arctic_training.checkpoint.schedule import SaveSchedule
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ResumeError
from arctic_training.state import RunState

Saver = SaveSchedule[CheckpointConfig]
Method = Callable[[Saver, Engine], object]


def adopt_model_methods(cls: type) -> None:
    """Makes methods ``save(self, model)`` and ``load(self, model)`` of a checkpoint engine `write` and `read`.

    They are called with the engine of the model, while ``self.checkpoint_dir`` and ``self.config.output_dir`` are the
    folder of the checkpoint. The position of the run and its random generators are saved and loaded beside them.
    """
    if (save := _taken(cls, "save")) is not None:
        setattr(cls, "write", _write_by(save))  # noqa: B010
    if (load := _taken(cls, "load")) is not None:
        setattr(cls, "read", _read_by(load))  # noqa: B010


def _write_by(save: Method) -> Callable[..., Mapping[str, object]]:
    def write(
        checkpointer: Saver, folder: Path, engines: Mapping[str, Engine], state: RunState
    ) -> Mapping[str, object]:
        with _in_folder(checkpointer, folder), disk_errors():
            save(checkpointer, engines["model"])
            torch.save(state.state_dict(), _state_file(folder))
        return {}

    return write


def _read_by(load: Method) -> Callable[..., None]:
    def read(
        checkpointer: Saver,
        folder: Path,
        manifest: Mapping[str, object],
        engines: Mapping[str, Engine],
        state: RunState,
    ) -> None:
        if manifest["world"] != process_group.world_size():
            raise ResumeError(f"{folder} was saved by {manifest['world']} processes; start as many")
        saved = torch.load(_state_file(folder), map_location="cpu", weights_only=True)
        state.require_fit(saved)
        with _in_folder(checkpointer, folder):
            load(checkpointer, engines["model"])
        state.load_state_dict(saved)

    return read


def _taken(cls: type, name: str) -> Method | None:
    """Removes and returns the method ``name`` that ``cls`` itself defines with a model as its one argument, or None."""
    method = vars(cls).get(name)
    if not inspect.isfunction(method) or len(inspect.signature(method).parameters) != 2:
        return None
    now = "write(self, folder, engines, state)" if name == "save" else "read(self, folder, manifest, engines, state)"
    warnings.warn(f"{cls.__qualname__}.{name}(self, model) is {now} here", FutureWarning, stacklevel=5)
    delattr(cls, name)
    return method


def _state_file(folder: Path) -> Path:
    return folder / f"run_{process_group.rank()}.pt"


@contextmanager
def _in_folder(checkpointer: Saver, folder: Path) -> Iterator[None]:
    """Has the checkpoint engine name ``folder`` as the one to write to and to read from inside the block."""
    config = checkpointer.config
    checkpointer.config = config.model_copy(update={"output_dir": folder})
    vars(checkpointer)["checkpoint_dir"] = folder
    try:
        yield
    finally:
        checkpointer.config = config
        del vars(checkpointer)["checkpoint_dir"]
