"""Turns off what a model draws at random while it trains: dropout, dropped layers, noise of routers."""

import copy
import re
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from arctic_training.model.target_losses import causal_model

_RATE = re.compile("drop|jitter")
"""Names of the rates that models keep in attributes of their modules, and in configs that their modules read."""


def disable_dropout(module: nn.Module) -> None:
    """Sets every rate of dropout in a model of transformers, and in the adapter around it, to 0.

    The config that is saved with the model keeps its rates: modules below read a copy.
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
