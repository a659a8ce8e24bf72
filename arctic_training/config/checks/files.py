"""What a recipe names outside itself, and is not there: looked for before anything is started."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from arctic_training.config.checks.paths import impossible, no_file
from arctic_training.config.checks.problems import Problem
from arctic_training.config.checks.sandbox import escaping
from arctic_training.config.recipe.get_config import located
from arctic_training.config.recipe.node import Node
from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.trainer import TrainerConfig


def missing_paths(config: TrainerConfig) -> list[str]:
    """A line for each file or folder that the recipe needs and has not, or could not write to."""
    tree = config._tree or Node({})
    problems = [*_found(config, ()), *_in_the_model(config), *_in_the_way(config), *escaping(config)]
    return located([_fitted(problem, tree) for problem in problems], tree)


def _in_the_model(config: TrainerConfig) -> Iterator[Problem]:
    """A folder to write to that belongs to the model: what is saved there would be taken for it."""
    name = str(getattr(config.model, "name_or_path", ""))
    if not name or impossible(name) or not (model := Path(name).expanduser()).is_dir():
        return
    told: list[tuple[tuple[str, ...], Path | None]] = [(("output_dir",), config.output_dir)]
    told += [(("checkpoint", str(n), "output_dir"), one.output_dir) for n, one in enumerate(config.checkpoint)]
    for path, folder in told:
        if (
            folder is not None
            and not impossible(str(folder))
            and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(model))
        ):
            yield Problem(path, f"{folder} lies in the folder of the model; choose another")


def _in_the_way(config: TrainerConfig) -> Iterator[Problem]:
    if told := no_file(config.train_log_metrics_path):
        yield Problem(("train_log_metrics_path",), told)
    runs = config.recipe_path.parent / "runs" / config.recipe_path.stem if config.recipe_path else None
    folder = config.output_dir or runs
    switch = config.kill_switch_path or (folder / "kill_switch" if folder else None)
    if switch is not None and not impossible(str(switch)) and switch.exists():
        yield Problem(("kill_switch_path",), f"{switch} is there already, and would stop the run; remove it")


def _found(value: Any, path: tuple[str, ...]) -> Iterator[Problem]:
    if isinstance(value, BaseConfig):
        for problem in value.missing_paths():
            yield replace(problem, path=(*path, *problem.path))
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _found(getattr(value, name), (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _found(one, (*path, str(number)))


def _fitted(problem: Problem, tree: Node) -> Problem:
    """The problem's path as the recipe has it, where a single section stands for a list of one."""
    node, path = tree, []
    for key in problem.path:
        if key.isdecimal() and not isinstance(node.value, list):
            continue
        path.append(key)
        node = node.step(key) or Node({})
    return replace(problem, path=tuple(path))
