"""What a recipe names outside itself, and is not there: looked for before anything is started."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from arctic_training.config.base import BaseConfig
from arctic_training.config.node import Node
from arctic_training.config.problems import Problem
from arctic_training.config.recipe import located
from arctic_training.config.trainer import TrainerConfig


def absent(config: TrainerConfig) -> list[str]:
    """A line for each file or folder that the recipe needs and has not, or could not write to."""
    tree = config._tree or Node({})
    return located([_fitted(problem, tree) for problem in _found(config, ())], tree)


def _found(value: Any, path: tuple[str, ...]) -> Iterator[Problem]:
    if isinstance(value, BaseConfig):
        for problem in value.absent():
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
