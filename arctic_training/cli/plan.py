"""Tells what a run takes: memory of each device by part, steps, tokens, FLOPs; and what would make it fit.

It uses neither device nor network: the config of a model on the hub has to be in the hub's cache.
Tokens are counted where `process-data` has prepared them.
"""

import argparse
import json
import os
import re

from arctic_training.cli.commands import add_recipe_arguments
from arctic_training.distributed.environment import set_env_default
from arctic_training.errors.types import InputError
from arctic_training.launch.arguments import positive

_FORBIDDEN = "HF_HUB_OFFLINE forbids asking the hub; unset it, or name a folder"
_NOT_IN_CACHE = "its config is not in the cache of the hub; `hf download` it, or name a folder"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--gpus", type=positive, metavar="N", help="devices, one process each (default: those here, or 1)"
    )
    parser.add_argument("--gpu-memory", type=_size, metavar="80g", help="memory of each (default: that of those here)")
    parser.add_argument("--host-memory", type=_size, metavar="128g", help="main memory of the machine")
    parser.add_argument("--json", action="store_true", help="print JSON; sizes are bytes")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan. Raises `InputError` for a recipe that cannot be used, or a model whose config is not here."""
    is_offline = "HF_HUB_OFFLINE" in os.environ
    set_env_default("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it then
    from arctic_training.cli.plan_table import as_json, as_lines
    from arctic_training.cli.recipe import read_config
    from arctic_training.config.get_config import place_errors
    from arctic_training.trainer.plan import find_machine, make_plan

    config = read_config(arguments)
    with place_errors(config):
        try:
            plan = make_plan(config, find_machine(arguments.gpus, arguments.gpu_memory, arguments.host_memory))
        except InputError as error:
            if not is_offline:
                error.args = (str(error).replace(_FORBIDDEN, _NOT_IN_CACHE),)
            raise
    print(json.dumps(as_json(plan), indent=2) if arguments.json else "\n".join(as_lines(arguments.recipe, plan)))
    return 0


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 80g, got {text!r}")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))
