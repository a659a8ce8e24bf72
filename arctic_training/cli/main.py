"""The command. Knows no torch until it must."""

import os
import sys
import traceback
from collections.abc import Sequence

from arctic_training.errors.redaction import redact
from arctic_training.errors.types import ArcticError
from arctic_training.launch.arguments import HELP, Arguments, parse
from arctic_training.launch.threads import openmp_settings


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words after ``arctic_training`` say; the exit code.

    Without ``words`` this process is the command's own, and OpenMP is set for it (see `openmp_settings`).
    """
    if words is None:
        os.environ.update(openmp_settings(os.environ))
        words = sys.argv[1:]
    try:
        return _run(parse(words))
    except ArcticError as error:
        text = "".join(traceback.format_exception(error)).rstrip() if "--debug" in words else str(error)
        print(redact(text), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of `| head`
        sys.stderr.close()
        return 141


def _run(said: Arguments) -> int:
    if said.help:
        print(HELP, end="")
        return 0
    if said.version:
        from importlib.metadata import version

        print(version("arctic_training"))
        return 0
    if said.command == "list":
        from arctic_training.cli.list_components import listing

        print(listing(said.kind), end="")
        return 0

    from arctic_training.config.recipe.get_config import get_config

    config = get_config(said.recipe, said.overrides)
    if said.show:
        from arctic_training.config.recipe.show import show

        print(show(config), end="")
        return 0
    from arctic_training.config.checks.files import missing_paths
    from arctic_training.errors.types import RecipeError

    if missing := missing_paths(config):
        raise RecipeError(missing)
    if said.command == "validate":
        print(f"{said.recipe}: nothing wrong was found")
        return 0

    from arctic_training.launch.launcher import launch

    return launch(said, config)


if __name__ == "__main__":
    sys.exit(main())
