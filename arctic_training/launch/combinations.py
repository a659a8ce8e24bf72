"""The runs of a sweep: a recipe with every combination of some values, each in a folder of its own."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from arctic_training.config.get_config import get_config, missing_paths
from arctic_training.config.recipe.yaml_writer import write_word
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import InputError, RecipeError
from arctic_training.registry import lookup, numbered
from arctic_training.trainer.named_runs import find_named_runs, named_models

_MOST_RUNS = 1000


@dataclass
class Combination:
    """A run of the sweep."""

    name: str
    """Its folder in the folder of the sweep, and its name in the table."""
    overrides: list[str]
    config: TrainerConfig
    code: int | None = None
    """The exit code; None while it has not been run."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        assert self.config.output_dir is not None
        return self.config.output_dir


def combine(recipe: str, overrides: Sequence[str], axes: Sequence[str], folder: Path) -> list[Combination]:
    """Returns a run of ``recipe`` in ``folder`` for every combination of ``axes``, words ``KEY.PATH=VALUE,VALUE,...``.

    ``overrides`` are those of all runs. Raises `InputError` for words that are no lists of values, and `RecipeError`
    with the problems of all combinations.
    """
    values = _values_of(axes)
    choices = list(product(*values.values()))
    names = numbered(_name(list(values), choice) for choice in choices)
    combinations, problems = [], list[str]()
    for name, choice in zip(names, choices, strict=True):
        words = [*overrides, *map("=".join, zip(values, choice, strict=True))]
        words.append(f"output_dir={write_word(str(folder / name))}")
        try:
            words += _own_files(get_config(recipe, words))
            config = get_config(recipe, words)
            if missing := missing_paths(config):
                problems += [f"{name}: {line}" for line in missing]
            else:
                if started_from := _checkpoints(config):
                    words += started_from
                    config = get_config(recipe, words)
                combinations.append(Combination(name, words, config))
        except RecipeError as error:
            problems += [f"{name}: {line}" for line in error.problems]
    if problems:
        raise RecipeError(problems)
    return combinations


def _values_of(axes: Sequence[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for word in axes:
        key, _, text = word.partition("=")
        several = split_values(text)
        if not key or not all(several) or key in values:
            raise InputError(f"--sweep: {word!r}: expected KEY.PATH=VALUE,VALUE,..., each key once")
        if key == "output_dir":
            raise InputError(
                f"--sweep: {word}: each run has a folder of its own in output_dir; write it before --sweep"
            )
        values[key] = several
    if (count := math.prod(map(len, values.values()))) > _MOST_RUNS:
        raise InputError(f"--sweep: {count:,} combinations; expected at most {_MOST_RUNS:,}")
    return values


def split_values(text: str) -> list[str]:
    """Returns the values of ``text``, which commas separate outside brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[{") - (char in "]}")
        if char == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += char
    return [value.strip() for value in values]


def _name(keys: Sequence[str], values: Sequence[str]) -> str:
    """Returns the name of a combination, such as ``lr_1e-4_seed_2``."""
    short = [key.rpartition(".")[2] for key in keys]
    labels = [one if short.count(one) == 1 else key for one, key in zip(short, keys, strict=True)]
    words = (re.sub(r"[^\w.+-]+", "_", value).strip("_.") for value in values)
    return "_".join(f"{label}_{word}" for label, word in zip(labels, words, strict=True))[:100]


def _checkpoints(config: TrainerConfig) -> list[str]:
    """Returns the overrides by which every run starts from the checkpoints that are the newest now of the runs that the
    recipe names as models."""
    checkpoints, overrides = find_named_runs(config), []
    for path, name in named_models(config):
        node, keys = config._tree, list[str]()
        for key in path:
            step = node.step(node.key_of(key)) if node is not None else None
            is_single = step is None and key.isdecimal()  # a single section stands for a list of one
            node, keys = (node, keys) if is_single else (step, [*keys, key])
        if name in checkpoints and node is not None:  # else the section has the name of another one
            overrides.append(f"{'.'.join(keys)}={write_word(checkpoints[name])}")
    return overrides


def _own_files(config: TrainerConfig) -> list[str]:
    """Returns the overrides by which a run writes to its own folder alone, and resumes from there."""
    files = {"train_log_metrics_path": config.train_log_metrics_path, "logger.output_dir": config.logger.output_dir}
    overrides = [f"{key}=null" for key, file in files.items() if file is not None]
    plain = config.dump()["checkpoint"]
    assert isinstance(plain, list)
    resumable = [
        number
        for number, section in enumerate(config.checkpoint)
        if section.enabled and getattr(lookup("checkpoint_engine", section.type), "resumable", False)
    ]
    assert config.output_dir is not None
    folders = [section.folder_in(config.output_dir) for section in config.checkpoint]
    sections = [
        {**section, "output_dir": folder and str(folder), "auto_resume": number in resumable[:1]}
        for number, (section, folder) in enumerate(zip(plain, folders, strict=True))
    ]
    return [*overrides, *([f"checkpoint={write_word(sections)}"] if sections else [])]
