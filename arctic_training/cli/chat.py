"""Talks with a saved model on the terminal; /help lists what to type beside messages."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arctic_training.cli.generation_options import add_checkpoint_options, add_generation_options, load
from arctic_training.errors.types import InputError

_HELP = """\
/retry            draw the last answer again; with a temperature of 0 it is the same
/undo             remove the last question and its answer
/set NAME VALUE   change an option of sampling: /set temperature 0.3; without both: show them all
/save FILE.jsonl  append the conversation to a file that sft reads
/reset            begin a new conversation
/system TEXT      begin one with this system prompt; without TEXT: with none
/help             show this list
/quit             end, as Ctrl-D does
Ctrl-C            end the answer, and keep what it has said
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_checkpoint_options(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    add_generation_options(parser, max_new_tokens=1024, temperature=0.7)


def run(arguments: argparse.Namespace) -> int:
    """Answers each line of standard input until it ends. Raises `InputError` for a model that cannot chat."""
    from arctic_training.generation.chat import Chat
    from arctic_training.generation.config import OPTIONS, read_options, with_option

    keys = read_options(vars(arguments))
    model, tokenizer = load(arguments)
    chat = Chat(model, tokenizer, keys, system=arguments.system)

    def begin(text: str) -> None:
        chat.system = text

    def change_option(text: str) -> None:
        name, _, value = text.partition(" ")
        if name:
            chat.keys = with_option(chat.keys, name, value.strip())
        for key in [name.replace("-", "_")] if name else OPTIONS:
            print(f"{key} {getattr(chat.keys, key)}")

    def save(text: str) -> None:
        chat.save(Path(text))
        print(f"{text}: {len(chat.messages)} messages added as one row")

    commands: dict[str, Callable[[str], object]] = {
        "/retry": lambda _: _show(chat.retry),
        "/undo": lambda _: print(f"removed: {chat.undo()}"),
        "/set": change_option,
        "/save": save,
        "/reset": lambda _: chat.reset(),
        "/system": begin,
        "/help": lambda _: print(_HELP, end=""),
    }
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
        if command in commands:
            try:
                commands[command](text.strip())
            except InputError as error:
                print(error, file=sys.stderr, flush=True)
        elif line.startswith("/"):
            print(f"no command is named {command}; /help lists them")
        elif line:
            _show(partial(chat.answer, line))


def _show(answer: Callable[[Callable[[str], object]], str]) -> None:
    """Prints what ``answer`` passes on while it generates, or why it cannot."""
    try:
        answer(lambda part: print(part, end="", flush=True))
    except InputError as error:
        print(error, end="", file=sys.stderr, flush=True)
    print(flush=True)
