"""Builds the trackers of a run: those of its recipe, and those of every run."""

import os
from pathlib import Path

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import collectives
from arctic_training.errors.types import RecipeError
from arctic_training.tracker.console import ConsoleConfig
from arctic_training.tracker.curves import CurvesConfig
from arctic_training.tracker.jsonl import JsonlConfig
from arctic_training.tracker.tracker import Tracker, refuse_run_on_error


def build_trackers(config: TrainerConfig, run_dir: Path) -> list[Tracker[ComponentConfig]]:
    """Returns the trackers of the run, checked on the main rank. Raises `RecipeError` when two write one file."""
    trackers = find_trackers(config, run_dir)
    with collectives.main_process_first() as first:
        for tracker in trackers if first else ():
            with refuse_run_on_error(tracker):
                tracker.check()
    return trackers


def find_trackers(config: TrainerConfig, run_dir: Path) -> list[Tracker[ComponentConfig]]:
    """Returns the trackers of the run, unchecked. Raises `RecipeError` when two write one file."""
    sections: list[ComponentConfig] = [*config.trackers]
    if config.wandb.enable:
        sections.append(config.wandb)
    sections.append(CurvesConfig(type="curves", metrics=config.train_log_metrics_path))
    # last, so that nothing is printed when another tracker refuses the run
    sections.append(JsonlConfig(type="jsonl", path=config.train_log_metrics_path))
    sections.append(ConsoleConfig(type="console", every=config.loss_log_interval))
    trackers = [Tracker[ComponentConfig].registered(section.type)(section) for section in sections]
    files = [(os.path.realpath(file), one.name) for one in trackers for file in one.files(run_dir)]
    for number, (file, name) in enumerate(files):
        if other := next((other for path, other in files[:number] if path == file), None):
            raise RecipeError(f"trackers: {other} and {name} both write {file}; remove one, or give it another file")
    return trackers
