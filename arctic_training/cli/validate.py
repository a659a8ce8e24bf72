"""The command ``validate``: checks of a recipe that need neither device nor network."""

from arctic_training.config.recipe.location import place
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import InputError


def validate(config: TrainerConfig, processes: int | None = None) -> None:
    """Raises `InputError`, with its place in the recipe, for what the local files of ``config`` show.

    ``processes`` is how many the run will have, where that is known.
    """
    from arctic_training.launch.launcher import require_groups
    from arctic_training.trainer.validation import check_run

    if processes:
        require_groups(config, processes)
    try:
        check_run(config)
    except InputError as error:
        place(error, config._tree, type(config).model_fields)
        raise
