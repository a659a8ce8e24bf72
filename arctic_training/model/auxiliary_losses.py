"""Auxiliary losses that a model's own forward adds, such as the balance of its experts: whether they are used."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_COEFFICIENT = re.compile("loss|aux")
"""Names of the config's fields that weight an auxiliary loss."""

_kept: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many losses so far contain the auxiliary losses of each watched model."""


def watch(model: "PreTrainedModel") -> None:
    """Starts to count the losses that contain the auxiliary losses of ``model``."""
    _kept[model] = 0
    original = model.loss_function

    def loss_function(*args: object, **kwargs: object) -> object:
        count_kept(model)
        return original(*args, **kwargs)

    model.loss_function = loss_function


def count_kept(model: nn.Module) -> None:
    """Counts a loss with gradients that contains the auxiliary losses of ``model``, if that is watched."""
    if model in _kept and torch.is_grad_enabled():
        _kept[model] += 1


def find_unused(modules: Iterable[nn.Module]) -> nn.Module | None:
    """Returns a watched model among ``modules`` and their parts whose auxiliary losses no loss has contained so far."""
    unused = [model for model, times in _kept.items() if not times]
    parts = (part for module in modules for part in module.modules()) if unused else ()
    return next((part for part in parts if part in unused), None)


def loss_keys(config: "PreTrainedConfig") -> list[str]:
    """Returns the fields of a model's config that weight an auxiliary loss and are not 0."""
    return sorted(set(_coefficients(config.to_dict())))


def dropped_loss_message(model: "PreTrainedModel", loss: str) -> str:
    """Returns the error message for a ``loss`` that leaves out the auxiliary losses of ``model``."""
    keys = ", ".join(loss_keys(model.config))
    return (
        f"model.hf_config_kwargs: {type(model).__name__} adds to its loss by {keys or 'its own forward'}, and {loss} "
        "leaves that out; use token_losses(..., reduction='sum'), add what token_losses(..., terms=[]) appends, or "
        "use the loss of self.model(**batch); or set the key so that nothing is added"
    )


def _coefficients(values: Mapping[str, object]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _coefficients(value)
        elif isinstance(value, (int, float)) and value and not isinstance(value, bool) and _COEFFICIENT.search(name):
            yield name
