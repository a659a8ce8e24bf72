"""Reads the recipe of a command. A command imports it when it runs: its help needs no library."""

import argparse

from arctic_training.config.get_config import get_config, missing_paths
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import RecipeError


def read_config(arguments: argparse.Namespace) -> TrainerConfig:
    """Returns the config of the recipe and overrides that `commands.add_recipe_arguments` added.

    Raises `RecipeError` with all problems of the recipe.
    """
    config = get_config(arguments.recipe, arguments.overrides)
    if missing := missing_paths(config):
        raise RecipeError(missing)
    return config
