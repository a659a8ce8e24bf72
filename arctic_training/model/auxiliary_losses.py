"""What a model's own forward adds to its loss, such as the balance of its experts: whether it is trained on."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_KEY = re.compile("loss|aux")
"""Names of the config's fields that say how much is added."""

_kept: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How often what each of the models adds has become part of a loss."""


def watch(model: Any) -> None:
    """Counts from now on, for a model that adds to its loss, the losses in which that is kept."""
    _kept[model] = 0
    computed = model.loss_function

    def loss_function(*args: Any, **kwargs: Any) -> Any:
        keep(model)
        return computed(*args, **kwargs)

    model.loss_function = loss_function


def keep(model: nn.Module) -> None:
    """Counts a loss from which gradients are taken, and in which what ``model`` adds is kept."""
    if model in _kept and torch.is_grad_enabled():
        _kept[model] += 1


def unkept(modules: Iterable[nn.Module]) -> nn.Module | None:
    """Returns a model among ``modules``, and their parts, that adds to its loss where no loss has kept that so far."""
    never = [model for model, times in _kept.items() if not times]
    return next((part for module in modules for part in module.modules() if part in never), None) if never else None


def loss_keys(config: Any) -> list[str]:
    """Returns the fields of a model's config that say how much is added to its loss, those that are 0 left out."""
    return sorted(set(_numbers(config.to_dict())))


def told_of(model: Any, loss: str) -> str:
    """Returns the sentence for a ``loss`` that leaves out what ``model`` adds to its own."""
    keys = ", ".join(loss_keys(model.config))
    return (
        f"model.hf_config_kwargs: {type(model).__name__} adds to its loss by {keys or 'its own forward'}, and {loss} "
        "leaves that out; take target_losses(..., reduction='sum'), add what target_losses(..., terms=[]) appends, or "
        "take the loss of self.model(**batch); or set the key so that nothing is added"
    )


def _numbers(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and value and not isinstance(value, bool) and _KEY.search(name):
            yield name
