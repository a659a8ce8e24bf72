"""Tries a recipe in small: two steps, an evaluation and a checkpoint, in a folder that is removed afterwards."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from arctic_training.config.get_config import get_config
from arctic_training.config.recipe.yaml_writer import write_word
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.distributed import environment
from arctic_training.launch.arguments import Arguments
from arctic_training.launch.launcher import launch
from arctic_training.tracker.records import METRICS, read_records
from arctic_training.trainer.session import resolve_run_dir

STEPS = 2
ROWS = 128
"""Rows of each source to train on; a source that has fewer repeats them."""
_EVALUATION_ROWS = 4
_MOST = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2, "max_new_tokens": 8}
"""The largest values of keys that set how much is computed."""

Section = dict[str, Any]


def dry_run(args: Arguments, config: TrainerConfig) -> int:
    """Runs ``config`` in small with the processes that ``args`` ask for, and returns the exit code of the run.

    Prints what was done. Nothing is left of it: run folder, checkpoints and data cache are in a folder of its own
    beside the run folder.
    """
    folder = resolve_run_dir(config)
    folder = folder.with_name(f"{folder.name}.dry_run")
    is_first = environment.rank() == 0
    if is_first:
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
    missing = [parent for parent in folder.parents if not parent.exists()]
    args.overrides += small_values(config, folder)
    start = time.monotonic()
    try:
        code = launch(args, get_config(args.recipe, args.overrides))
        if is_first:
            took = f"{time.monotonic() - start:.0f} s"
            print(f"dry run: {_summary(folder)}; {took}" if not code else f"dry run: failed with exit code {code}")
    finally:
        if is_first:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
    return code


def small_values(config: TrainerConfig, folder: Path) -> list[str]:
    """Returns the overrides that make a run of ``config`` small, and have it write to ``folder`` alone."""
    plain = config.dump()
    small: Section = {key: _shrunk(getattr(config, key), value) for key, value in plain.items()}
    small |= {key: min(small[key], most) for key, most in _MOST.items() if small.get(key)}
    small |= {"output_dir": str(folder), "resume": None, "trackers": [], "train_log_metrics_path": None}
    small |= {"exit_iteration": 0, "exit_iteration_this_run": 0, "train_log_iter_interval": 1}
    small["gradient_accumulation_steps"] = max(small["gradient_accumulation_steps"], small.get("num_minibatches", 1))
    if config.train_iters or config.epochs:
        small["train_iters"] = STEPS
    if config.eval_interval or config.evaluate_first or config.evaluate_last:
        small |= {"eval_interval": 0, "evaluate_first": False, "evaluate_last": True}
    small["data"] = _small_data(config, small["data"], folder)
    small["checkpoint"] = [
        _small_checkpoint(*two, folder) for two in zip(config.checkpoint, small["checkpoint"], strict=True)
    ]
    small["wandb"] |= {"enable": False}
    small["logger"] |= {"output_dir": None}
    batch_keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    small["deepspeed"] = {key: one for key, one in small["deepspeed"].items() if key not in batch_keys}
    changed = {key: value for key, value in small.items() if value != plain[key]}
    return [f"{key}={write_word(_stated(getattr(config, key), value))}" for key, value in changed.items()]


def _stated(section: object, plain: object) -> object:
    """Returns the plain values of a section without those that are null by default, which need not be stated."""
    if not isinstance(section, BaseModel) or not isinstance(plain, dict):
        return plain
    fields = type(section).model_fields
    return {key: value for key, value in plain.items() if value is not None or fields[key].default is not None}


def _shrunk(value: object, plain: object) -> object:
    """Returns the plain values of a section, or of each of a list, with the keys of `_MOST` and cadences made small."""
    if isinstance(value, list) and isinstance(plain, list):
        return [_shrunk(*two) for two in zip(value, plain, strict=True)]
    if not isinstance(plain, dict):
        return plain
    small: Section = dict(plain)
    limits: dict[str, Callable[[Any], Any]] = {
        "max_new_tokens": lambda one: min(one, _MOST["max_new_tokens"]),
        "max_samples": lambda one: _EVALUATION_ROWS,
        "every": lambda one: min(one, STEPS),
    }
    small |= {key: limit(small[key]) for key, limit in limits.items() if isinstance(small.get(key), int)}
    if isinstance(value, SchedulerConfig):  # without warm-up: the first step of one changes nothing
        lengths = {"warmup_ratio": 0.0, "warmup_steps": None, "warmup_epochs": None, "num_warmup_steps": None}
        small |= {key: one for key, one in lengths.items() if key in small}
        small |= {"num_decay_steps": 1} if small.get("num_decay_steps") else {}
    return small


def _small_data(config: TrainerConfig, plain: Section, folder: Path) -> Section:
    if not isinstance(config.data, SourcedDataConfig):
        return plain
    return {
        **plain,
        "cache_dir": str(folder / "cache"),
        "fail_on_missing_cache": False,
        "sources": [_fewer(*two, ROWS) for two in zip(config.data.sources, plain["sources"], strict=True)],
        "eval_sources": [
            _fewer(*two, _EVALUATION_ROWS) for two in zip(config.data.eval_sources, plain["eval_sources"], strict=True)
        ],
    }


def _fewer(source: DataSourceConfig, plain: Section, count: int) -> Section:
    """Returns the section of a source with at most ``count`` rows; a stream ends with the run as it is."""
    if getattr(source, "streaming", False):
        return plain
    known = source.sample_count or count
    return {**plain, "sample_ratio": None, "weight": None, "sample_count": min(known, count)}


def _small_checkpoint(section: CheckpointConfig, plain: Section, folder: Path) -> Section:
    own = section.folder_in(folder)
    saves = {"save_every_n_steps": STEPS if plain["save_every_n_steps"] else 0, "save_end_of_training": True}
    return {**plain, **saves, "output_dir": own and str(own), "auto_resume": False}


def _summary(folder: Path) -> str:
    """Returns what a run in ``folder`` has done, from the files that it wrote."""
    records, _ = read_records(folder / METRICS)
    trained = [record for record in records if "loss" in record]
    loss = f", loss {trained[-1]['loss']:.4g}" if trained else ""
    evaluations = sum(any(key.startswith("loss/") or key.endswith("/eval") for key in one) for one in records)
    files = [*folder.glob("generations*/**/*.jsonl"), *folder.glob("samples/**/*.*")]
    counts = {
        ("evaluation", "evaluations"): evaluations,
        ("checkpoint", "checkpoints"): len(list(folder.glob("checkpoints/*/step_*"))),
        ("file of samples", "files of samples"): len(files),
    }
    done = [f"{max((record['step'] for record in records), default=0)} steps{loss}"]
    done += [f"{count} {one if count == 1 else several}" for (one, several), count in counts.items() if count]
    return ", ".join(done) + "; nothing of it is kept"
