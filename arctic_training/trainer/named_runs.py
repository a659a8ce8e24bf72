"""Runs that a recipe names as models: each stands for a checkpoint, the same on all ranks and in all that is saved."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from pydantic import BaseModel

from arctic_training.checkpoint.saved_model import find_model
from arctic_training.config.sections.model import NamesModel
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import collectives
from arctic_training.errors.types import ArcticError, InputError

T = TypeVar("T")


def find_named_runs(config: TrainerConfig) -> dict[str, str]:
    """Returns the folder of the newest complete checkpoint of every run that a section of ``config`` names as a model
    or tokenizer, by that name.

    Raises `InputError`, with the key, for a run without one that can be loaded.
    """
    checkpoints: dict[str, str] = {}
    for path, name in named_models(config):
        try:
            folder = find_model(name)
        except ArcticError as error:
            raise InputError(f"{'.'.join(path)}: {error}") from error
        if folder != name:
            checkpoints[name] = folder
    return checkpoints


def find_named_runs_together(config: TrainerConfig) -> dict[str, str]:
    """Returns `find_named_runs` of the first rank, on every rank, which all call it: a run that is still going on may
    save meanwhile. Raises `InputError` on the first."""
    checkpoints: dict[str, str] = {}
    with collectives.main_process_first() as first:
        if first:
            checkpoints = find_named_runs(config)
    return collectives.broadcast_object(checkpoints)


def with_checkpoints(config: TrainerConfig, checkpoints: Mapping[str, str]) -> TrainerConfig:
    """Returns ``config`` with ``checkpoints``, the folders by the names of runs, in their place.

    It is ``config`` itself where there are none. A section that stands for two roles still does.
    """
    return _replaced(config, checkpoints, {})


def named_models(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields what ``value``, at ``path`` of the recipe, names as models at any depth, with the path of each."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from named_models(one, (*path, str(number)))
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            one = getattr(value, key)
            if not _names_model(value, key):
                yield from named_models(one, (*path, key))
            elif one:
                yield (*path, key), one


def _replaced(value: T, checkpoints: Mapping[str, str], copies: dict[int, object]) -> T:
    """Returns ``value``, or a copy with other names; ``copies`` are those of sections, by their identity."""
    if isinstance(value, list):
        items = [_replaced(one, checkpoints, copies) for one in value]
        return value if all(one is other for one, other in zip(items, value, strict=True)) else items  # type: ignore[return-value]
    if not isinstance(value, BaseModel):
        return value
    if id(value) not in copies:
        changes: dict[str, object] = {}
        for key in type(value).model_fields:
            one = getattr(value, key)
            other = checkpoints.get(one, one) if _names_model(value, key) else _replaced(one, checkpoints, copies)
            if other is not one:
                changes[key] = other
        copy = value.model_copy(update=changes) if changes else value
        copy.model_fields_set.intersection_update(value.model_fields_set)  # what is a default stays one
        copies[id(value)] = copy
    return copies[id(value)]  # type: ignore[return-value]


def _names_model(section: BaseModel, key: str) -> bool:
    return any(isinstance(mark, NamesModel) for mark in type(section).model_fields[key].metadata)
