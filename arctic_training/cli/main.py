"""The command ``arctic_training``. Imports torch only when it is needed."""

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence

from arctic_training.cli.commands import COMMANDS, run_command, without_warnings
from arctic_training.display.activity import activity
from arctic_training.display.starting import starting
from arctic_training.errors.redaction import redact
from arctic_training.errors.types import ArcticError, RecipeError
from arctic_training.launch.arguments import Arguments, format_help, parse
from arctic_training.launch.threads import openmp_settings


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command with the arguments ``words``, by default those of this process, and returns the exit code.

    Without ``words`` this process belongs to the command, which sets OpenMP for it (see `openmp_settings`).
    """
    if words is None:
        os.environ.update(openmp_settings(os.environ))
        atexit.register(gc.freeze)  # the last collections of an interpreter with all libraries take seconds
        words = sys.argv[1:]
    try:
        if words and words[0] in COMMANDS:
            return run_command(words[0], words[1:])
        with starting():
            return _run(parse(words, COMMANDS))
    except ArcticError as error:
        text = "".join(traceback.format_exception(error)).rstrip() if "--debug" in words else str(error)
        print(redact(text), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of `| head`
        sys.stderr.close()
        return 141


def _run(args: Arguments) -> int:
    if args.help:
        print(format_help({name: command.summary for name, command in COMMANDS.items()}), end="")
        return 0
    if args.version:
        from importlib.metadata import version

        print(version("arctic_training"))
        return 0

    with activity("importing libraries"):
        from arctic_training.config.get_config import get_config

    with activity("reading the recipe"):
        config = get_config(args.recipe, args.overrides)
    if args.show:
        from arctic_training.config.show import show

        print(show(config), end="")
        return 0
    from arctic_training.config.get_config import missing_paths

    if missing := missing_paths(config):
        raise RecipeError(missing)
    if args.command == "validate":
        from arctic_training.cli.validate import validate

        with activity("checking the run"), without_warnings():
            validate(config, args)
        print(f"{args.recipe}: no problems found")
        return 0

    if args.sweep or args.dry_run:
        from arctic_training.launch.dry_run import dry_run
        from arctic_training.launch.sweep import sweep

        return sweep(args, config) if args.sweep else dry_run(args, config)

    from arctic_training.launch.launcher import launch

    return launch(args, config)


if __name__ == "__main__":
    sys.exit(main())
