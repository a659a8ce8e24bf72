"""The outputs of a run: its folder, its log and its trackers."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from arctic_training.config.recipe.yaml_writer import write_yaml
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.display.activity import Activity, activity
from arctic_training.display.watch import RUN, close_display
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import InputError
from arctic_training.logging import close_log, logger, start_console_log, start_file_log
from arctic_training.state import Rng
from arctic_training.tracker.samples import Samples
from arctic_training.tracker.tracker import Tracker, refuse_run_on_error
from arctic_training.trainer.lock import Lock

_LIBRARIES = ("arctic_training", "torch", "deepspeed", "transformers", "datasets", "peft", "numpy", "pydantic")


class Session:
    """Created once on every rank; the main rank alone writes the run folder and calls the trackers."""

    def __init__(self, config: TrainerConfig, generators: Mapping[str, object] | None = None) -> None:
        """``generators`` is the state of `Rng` that `leave` restores, by default the present one."""
        self.config = config
        self.run_dir = resolve_run_dir(config)
        self.trackers: list[Tracker[ComponentConfig]] = []
        self.lock: Lock | None = None
        self._rng: Mapping[str, object] = generators or Rng().state_dict()
        self._run: Activity | None = None
        self._open = ExitStack()
        options, world = config.logger, process_group.world_size()
        start_console_log(level=options.level, rank=process_group.rank(), world=world, ranks=options.print_output_ranks)

    def acquire_locks(self) -> None:
        """Locks the run folder and those of the checkpoints. Raises `InputError` when another run holds one of them,
        or two sections would save in one folder."""
        saves = [section.folder(self.run_dir) for section in self.config.checkpoint if section.enabled]
        real = [os.path.realpath(folder) for folder in saves]
        if twice := next((folder for folder in real if real.count(folder) > 1), None):
            raise InputError(f"checkpoint: two sections save in one folder, {twice}; give one another output_dir")
        self.lock = Lock([self.run_dir, *saves])

    def start(self, trackers: Sequence[Tracker[ComponentConfig]], step: int) -> None:
        """Starts the trackers at ``step``, writes recipe and environment on the main rank, and the log on every rank.

        Called when all parts of the run are built: a run that is refused, by a tracker too, leaves nothing behind.
        Raises `InputError` when a tracker fails to start.
        """
        options = self.config.logger
        folder = options.output_dir or self.run_dir / "logs"
        with collectives.main_process_first() as first:
            if first:
                recipe = self.config.dump()
                facts = json.dumps(environment_facts(self.config.recipe_dir), indent=2)
                self.run_dir.mkdir(parents=True, exist_ok=True)
                for tracker in trackers:
                    with refuse_run_on_error(tracker):
                        tracker.start(recipe, self.run_dir, step)
                    self.trackers.append(tracker)
                (self.run_dir / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
                (self.run_dir / "environment.json").write_text(facts + "\n", encoding="utf-8")
        start_file_log(folder, level=options.level, rank=process_group.rank(), ranks=options.file_output_ranks)

    def show_progress(self, step: int, last_step: int | None) -> None:
        """Shows how far the run is: at ``step`` of ``last_step``, which is None for a run of unknown length."""
        if self._run is None:
            self._run = self._open.enter_context(activity(RUN, last_step, done=step))
        self._run.done = step

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends ``values`` to every tracker; one that fails is left out from then on."""
        self._send(step, lambda tracker: tracker.log(values, step))

    def _send(self, step: int, log: Callable[[Tracker[ComponentConfig]], None]) -> None:
        for tracker in list(self.trackers):
            try:
                log(tracker)
            except Exception as error:
                # a tracker never ends a run: an hour of training is worth more than a line in a chart
                self.trackers.remove(tracker)
                logger.error(f"tracker {tracker.name} failed and is left out from step {step} on: {error!r}")

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        """Writes ``samples`` to ``samples/<name>`` in the run folder, and sends them to every tracker."""
        if not process_group.is_main():
            return
        try:
            samples.write(self.run_dir / "samples" / name, step)
        except OSError as error:
            logger.error(f"the samples {name} of step {step} could not be written: {error}")
        self._send(step, lambda tracker: tracker.log_samples(name, samples, step))

    def close(self, *, failed: bool) -> None:
        """Finishes the trackers, ends what is shown of the run and releases the locks."""
        while self.trackers:
            tracker = self.trackers.pop()
            try:
                with activity(f"finishing {tracker.name}"):
                    tracker.finish(failed)
            except Exception as error:
                logger.error(f"tracker {tracker.name} could not finish: {error!r}")
        close_display()
        self._open.close()
        self._run = None
        self.release_locks()
        process_group.restore_environment()

    def leave(self, *, failed: bool) -> None:
        """Calls `close`, and restores the log and the random generators of the process."""
        self.close(failed=failed)
        close_log()
        if self._rng:
            Rng().load_state_dict(self._rng)
            self._rng = {}

    def release_locks(self) -> None:
        """Releases the locks of the run."""
        if self.lock is not None:
            self.lock.release()
        if process_group.is_main() and self.config.output_dir is None and self.config.recipe_path is None:
            with contextlib.suppress(OSError):  # a temporary folder that is still empty
                self.run_dir.rmdir()


def resolve_run_dir(config: TrainerConfig) -> Path:
    """Returns the run folder, the same on every rank; a new temporary one for a recipe without file or output_dir."""
    if config.output_dir is not None:
        return config.output_dir.absolute()
    if config.recipe_path is not None:
        return config.recipe_path.parent.absolute() / "runs" / config.recipe_path.stem
    temporary = tempfile.mkdtemp(prefix="arctic_training_") if process_group.is_main() else ""
    return Path(collectives.broadcast_object(temporary))


def environment_facts(folder: Path) -> dict[str, Any]:
    """Returns versions, machine and command of the run, and the git commit of ``folder``, that of the recipe; no
    environment variables, since some are secrets."""
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
        "git_commit": _git_commit(folder),
    }


def _git_commit(folder: Path) -> str | None:
    """Returns the commit of ``folder``, with ``-dirty`` where files of it have changed; None where git tells none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
