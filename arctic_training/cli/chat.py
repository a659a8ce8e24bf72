"""Talks with a saved model on the terminal; /help lists what to type beside messages."""

import argparse
import contextlib
import importlib
import sys

from arctic_training.cli.generation_options import add_checkpoint_options, add_generation_options, load
from arctic_training.errors.types import InputError

_HELP = """\
/reset         begin a new conversation
/system TEXT   begin one with this system prompt; without TEXT: with none
/quit          end, as Ctrl-D does
Ctrl-C         end the answer, and keep what it has said
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_checkpoint_options(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    add_generation_options(parser, max_new_tokens=1024, temperature=0.7)


def run(arguments: argparse.Namespace) -> int:
    """Answers each line of standard input until it ends. Raises `InputError` for a model that cannot chat."""
    from arctic_training.generation.chat import Chat
    from arctic_training.generation.config import read_options

    keys = read_options(vars(arguments))
    model, tokenizer = load(arguments)
    chat = Chat(model, tokenizer, keys, system=arguments.system)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # history and editing of lines, where the system has them
            importlib.import_module("readline")
        print(f"{arguments.checkpoint}: /help lists the commands")
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print()
            continue
        command, _, text = line.partition(" ")
        if command == "/quit":
            return 0
        if command == "/reset":
            chat.reset()
        elif command == "/system":
            chat.system = text.strip()
        elif command == "/help":
            print(_HELP, end="")
        elif line.startswith("/"):
            print(f"no command is named {command}; /help lists them")
        elif line:
            try:
                chat.answer(line, lambda part: print(part, end="", flush=True))
            except InputError as error:
                print(error, end="", file=sys.stderr, flush=True)
            print(flush=True)
