"""Show samples as they will be trained on, and statistics of all data.

The data are read as a run reads them: prepared, cached, packed and collated by
its own data factory. Nothing else is built, and no run folder is written.
"""

import argparse
import json

from arctic_training.cli.commands import add_recipe_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_recipe_arguments(parser)
    rows = "rows to show of each set (default: 3)"
    parser.add_argument("-n", "--rows", type=_count, default=3, metavar="N", help=rows)
    most = "tokens to show of a text, its first and its last ones; 0: all (default: 400)"
    parser.add_argument("--tokens", type=_count, default=400, metavar="N", help=most)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the preview, and returns the exit code. Raises `InputError` for data that cannot be used."""
    from arctic_training.cli.preview_text import print_preview, show_progress
    from arctic_training.cli.recipe import read_config
    from arctic_training.config.get_config import place_errors
    from arctic_training.data.preview.preview import preview_set, to_json
    from arctic_training.distributed import process_group
    from arctic_training.registry import lookup
    from arctic_training.trainer.assembly import prepared_data

    config = read_config(arguments)
    # a sequence that several processes share is shown in one piece
    config = config.model_copy(update={"sequence_parallel_size": 1})
    failed = True
    try:
        with place_errors(config), prepared_data(lookup("trainer", config.type), config) as (factory, loaders):
            tokenizer = factory.trainer.tokenizer
            loaders_of_sets = {"train": loaders.train, **loaders.evaluation}
            sets = {
                name: preview_set(factory, loader, name, tokenizer, arguments.rows, show_progress(name))
                for name, loader in loaders_of_sets.items()
                if loader is not None
            }
        failed = False
    finally:
        process_group.destroy_process_group(failed=failed)
    if arguments.json:
        described = {"trainer": config.type, "data": config.data.type, "sets": to_json(sets, tokenizer)}
        print(json.dumps(described, allow_nan=False))
        return 0
    print_preview(sets, tokenizer, max_tokens=arguments.tokens)
    return 0


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer from 0, got {text!r}")
    return int(text)
