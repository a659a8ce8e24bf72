"""Completes prompts with a saved model: prints one completion as it grows, or several as JSON lines."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from arctic_training.cli.generation_options import add_checkpoint_options, add_generation_options, load
from arctic_training.data.formats.json_text import RepeatedKeyError, loads
from arctic_training.errors.types import DataError, InputError

Prompt = str | list[dict[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_checkpoint_options(parser)
    add = parser.add_argument
    add(
        "-p",
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to answer or complete; repeatable",
    )
    rows = "JSON lines with a prompt (a text) or messages (a chat) in each; - reads them from standard input"
    add("--file", metavar="FILE", help=rows)
    add("--raw", action="store_true", help="complete texts as they are, without the chat template")
    add("-o", "--output", type=Path, metavar="FILE", help="write the completions there, as JSON lines")
    add("--json", action="store_true", help="print JSON lines, as for several prompts")
    add("--batch-size", type=int, default=8, metavar="N", help="prompts that are completed at once (default: 8)")
    add_generation_options(parser, max_new_tokens=256, temperature=0.0)


def run(arguments: argparse.Namespace) -> int:
    """Prints the completion of one prompt as it is generated, or those of several as JSON lines.

    Raises `InputError` for options, prompts or a model that cannot be used.
    """
    prompts = [*arguments.prompt, *_rows(arguments.file)]
    if not prompts or "" in prompts:
        raise InputError("no prompt; give one with -p TEXT, or several with --file FILE")
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size: expected an integer above 0, got {arguments.batch_size}")
    from arctic_training.generation.complete import complete
    from arctic_training.generation.config import read_options

    keys = read_options(vars(arguments))
    model, tokenizer = load(arguments)
    streams = len(prompts) == 1 and not (arguments.json or arguments.file or arguments.output)
    rows = complete(
        model,
        tokenizer,
        prompts,
        keys,
        batch_size=arguments.batch_size,
        raw=arguments.raw,
        write=(lambda text: print(text, end="", flush=True)) if streams else None,
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print("\n" if streams else text, end="")
    return 0


def _rows(file: str | None) -> Iterator[Prompt]:
    """Yields the prompts of a file. Raises `InputError` for one that cannot be read, and `DataError` for a row."""
    if file is None:
        return
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except RepeatedKeyError as error:
            raise DataError(f"{file}:{number}: {error}") from None
        except ValueError as error:
            raise DataError(f"{file}:{number}: not JSON: {error}") from None
        prompt = row.get("prompt", row.get("messages")) if isinstance(row, dict) else None
        is_chat = isinstance(prompt, list) and all(
            isinstance(one, dict) and {"role", "content"} <= one.keys() for one in prompt
        )
        if not prompt or not (isinstance(prompt, str) or is_chat):
            raise DataError(f"{file}:{number}: expected an object with a prompt, a text, or messages, a chat")
        yield prompt
