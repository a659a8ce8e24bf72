"""The engines with which `validate` calls the checks of a run: of small networks, or of models without weights."""

from collections.abc import Mapping

import torch

from arctic_training.config.sections.model import ModelConfig
from arctic_training.engine.engine import Engine, FrozenEngine
from arctic_training.model.factory import ModelFactory, NetworkFactory
from arctic_training.state import isolated_rng

MOST_WEIGHTS = 2**24
"""Weights of all networks of a run together up to which they are made."""


def checked_engines(models: Mapping[str, ModelFactory[ModelConfig]]) -> dict[str, Engine]:
    """Returns an engine for each of ``models``, by role, that computes outputs and trains nothing.

    Networks that have no files and at most `MOST_WEIGHTS` are made, in fp32 on the CPU. Otherwise all models are those
    on the meta device, whose outputs have a shape and no numbers. Empty where one cannot be built there.
    """
    modules = {name: factory.meta_model for name, factory in models.items() if factory.meta_model is not None}
    if len(modules) < len(models):
        return {}
    count = sum(weight.numel() for module in modules.values() for weight in module.parameters())
    if count <= MOST_WEIGHTS and all(isinstance(factory, NetworkFactory) for factory in models.values()):
        with isolated_rng():
            modules = {name: factory().float() for name, factory in models.items()}
    return {name: FrozenEngine(module) for name, module in modules.items()}


def device_of(engines: Mapping[str, Engine]) -> torch.device:
    """Returns the device of the weights of ``engines``; the CPU where there are none."""
    return next((weight.device for one in engines.values() for weight in one.module.parameters()), torch.device("cpu"))
