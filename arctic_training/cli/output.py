"""The option -o of commands that write a text: to a new file, or to standard output."""

import argparse
from pathlib import Path

from arctic_training.errors.types import InputError


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``-o FILE``."""
    text = "write to this file, which must not exist (default: print it)"
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help=text)


def write_output(text: str, file: Path | None) -> None:
    """Prints ``text``, or writes it to ``file``. Raises `InputError` for a file that exists or cannot be written."""
    if file is None:
        print(text, end="")
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as output:
            output.write(text)
    except FileExistsError:
        raise InputError(f"{file} exists, and is not overwritten; give another name, or remove it") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
    print(f"written: {file}")
