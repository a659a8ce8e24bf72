"""The command ``validate``: checks of a recipe that need neither device nor network."""

from arctic_training.config.recipe.location import place
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import InputError


def validate(config: TrainerConfig) -> None:
    """Raises `InputError`, with its place in the recipe, for what the local files of ``config`` show."""
    from arctic_training.trainer.validation import check_run

    try:
        check_run(config)
    except InputError as error:
        place(error, config._tree, type(config).model_fields)
        raise
