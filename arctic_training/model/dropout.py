"""Disables everything that a model draws at random in training: dropout, dropped layers, noise of routers."""

import copy
import re
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from arctic_training.model.causal_lm import causal_model

_RATE = re.compile("drop|jitter")
"""Names of rates, in attributes of a model's modules and in the configs that its modules read."""


def disable_dropout(module: nn.Module) -> None:
    """Sets every rate of dropout in a model of transformers, and in the adapter around it, to 0.

    The config that is saved with the model keeps its rates: the modules below get a copy. Raises `ModelError` for
    another model.
    """
    model = causal_model(module)
    config = copy.deepcopy(model.config)
    _zero_rates(config.__dict__)
    for part in module.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        _zero_rates(part.__dict__)
        if part is not model and part.__dict__.get("config") is model.config:
            part.config = config


def _zero_rates(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, float) and _RATE.search(name):
            values[name] = 0.0
