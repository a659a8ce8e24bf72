"""The command ``validate``: checks of a recipe that need neither device nor network."""

from arctic_training.config.get_config import place_errors
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.launch.arguments import Arguments


def validate(config: TrainerConfig, args: Arguments) -> None:
    """Raises `InputError`, with its place in the recipe, for what the local files of ``config`` and ``args`` show.

    How many processes the run has is known where ``args`` say it.
    """
    from arctic_training.launch.launcher import check_launch, require_groups
    from arctic_training.trainer.validation import check_run

    check_launch(args)
    if args.num_gpus and args.num_nodes == 1:
        require_groups(config, args.num_gpus)
    with place_errors(config):
        check_run(config)
