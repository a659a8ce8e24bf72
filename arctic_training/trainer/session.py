"""The run as the outside sees it: its folder, its log, and where its numbers are told."""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arctic_training.config.recipe.yaml_writer import write_yaml
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import InputError
from arctic_training.logging import close_log, logger, start_console_log, start_file_log
from arctic_training.state import Rng
from arctic_training.tracker.tracker import Tracker, refuse_run_on_error
from arctic_training.trainer.lock import Lock

_LIBRARIES = ("arctic_training", "torch", "deepspeed", "transformers", "datasets", "peft", "numpy", "pydantic")


class Session:
    """Made once on every rank; only the main one writes the run folder and tells the trackers."""

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config
        self.run_dir = resolve_run_dir(config)
        self.trackers: list[Tracker] = []
        self.lock: Lock | None = None
        self._rng: dict[str, Any] | None = Rng().state_dict()
        told, world = config.logger, process_group.world_size()
        start_console_log(level=told.level, rank=process_group.rank(), world=world, ranks=told.print_output_ranks)

    def acquire_locks(self) -> None:
        """Keep other runs out of the run folder and those of the checkpoints. Raises `InputError` when one is there,
        or two sections would save in one folder."""
        saves = [section.folder(self.run_dir) for section in self.config.checkpoint if section.enabled]
        real = [os.path.realpath(folder) for folder in saves]
        if twice := next((folder for folder in real if real.count(folder) > 1), None):
            raise InputError(f"checkpoint: two sections save in one folder, {twice}; give one another output_dir")
        self.lock = Lock([self.run_dir, *saves])

    def start(self, trackers: Sequence[Tracker], step: int) -> None:
        """Start the trackers at ``step`` and write who runs what on the main rank, and the log on every one.

        Called when every part of the run is made: a run that is refused, be it by a tracker, leaves nothing behind.
        Raises `InputError`.
        """
        told = self.config.logger
        folder = told.output_dir or self.run_dir / "logs"
        with collectives.main_process_first() as first:
            if first:
                recipe = self.config.dump()
                self._start(trackers, recipe, step)
                self._write(recipe)
        start_file_log(folder, level=told.level, rank=process_group.rank(), ranks=told.file_output_ranks)

    def _start(self, trackers: Sequence[Tracker], recipe: dict[str, Any], step: int) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        for tracker in trackers:
            with refuse_run_on_error(tracker):
                tracker.start(recipe, self.run_dir, step)
            self.trackers.append(tracker)

    def _write(self, recipe: dict[str, Any]) -> None:
        (self.run_dir / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
        (self.run_dir / "environment.json").write_text(
            json.dumps(environment_facts(), indent=2) + "\n", encoding="utf-8"
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in list(self.trackers):
            try:
                tracker.log(values, step)
            except Exception as error:
                # a tracker never ends a run: an hour of training is worth more than a line in a chart
                self.trackers.remove(tracker)
                logger.error(f"tracker {tracker.name} failed and is left out from step {step} on: {error!r}")

    def close(self, *, failed: bool) -> None:
        while self.trackers:
            tracker = self.trackers.pop()
            try:
                tracker.finish(failed)
            except Exception as error:
                logger.error(f"tracker {tracker.name} could not finish: {error!r}")
        self.release_locks()

        process_group.restore_environment()

    def leave(self, *, failed: bool) -> None:
        """`close`, and leave the process, which the run may have been a guest of, as it was."""
        self.close(failed=failed)
        close_log()
        if self._rng is not None:
            Rng().load_state_dict(self._rng)
            self._rng = None

    def release_locks(self) -> None:
        """Let other runs in."""
        if self.lock is not None:
            self.lock.release()
        if process_group.is_main() and self.config.output_dir is None and self.config.recipe_path is None:
            with contextlib.suppress(OSError):  # a temporary folder that nothing came into
                self.run_dir.rmdir()


def resolve_run_dir(config: TrainerConfig) -> Path:
    """The run folder, the same on every rank; a new temporary one for a recipe that is no file and names none."""
    if config.output_dir is not None:
        return config.output_dir.absolute()
    if config.recipe_path is not None:
        return config.recipe_path.parent.absolute() / "runs" / config.recipe_path.stem
    made = tempfile.mkdtemp(prefix="arctic_training_") if process_group.is_main() else ""
    return Path(collectives.broadcast_object(made))


def environment_facts() -> dict[str, Any]:
    """What a person needs to run this again: versions, machine, command. No environment variable: some are secrets."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "processes": process_group.world_size(),
        "devices": devices or ["cpu"],
        "command": sys.argv,
    }
