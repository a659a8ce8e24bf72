"""The command ``validate``: checks of a recipe that need neither device nor network."""

from arctic_training.config.get_config import place_errors
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import environment
from arctic_training.errors.types import InputError


def validate(config: TrainerConfig, processes: int | None = None) -> None:
    """Raises `InputError`, with its place in the recipe, for what the local files of ``config`` show.

    ``processes`` is how many the run will have, where that is known.
    """
    from arctic_training.launch.launcher import require_groups
    from arctic_training.trainer.validation import check_run

    if problem := environment.rank_problem():
        raise InputError(problem)
    if processes:
        require_groups(config, processes)
    with place_errors(config):
        check_run(config)
