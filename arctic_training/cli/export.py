"""Writes a saved model as a folder for use elsewhere, with its adapter merged and a card.

A checkpoint of type deepspeed is read one weight at a time.
"""

import argparse
from pathlib import Path

from arctic_training.cli.generation_options import add_checkpoint_options, clean_stdout
from arctic_training.display.activity import activity
from arctic_training.display.starting import starting
from arctic_training.errors.types import InputError

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_checkpoint_options(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the new folder")
    add("--max-shard-size", type=_bytes, default=5 * 10**9, metavar="SIZE", help="of a file of weights (default: 5GB)")
    add("--gguf", metavar="TYPE", help="also write a file for llama.cpp, by its converter: f16, bf16, q8_0, ...")
    add("--push-to-hub", default="", metavar="OWNER/NAME", help="upload the folder, with the token of HF_TOKEN")
    add("--private", action="store_true", help="make a new repository of the hub private")


def run(arguments: argparse.Namespace) -> int:
    """Exports, and prints what was written. Raises `InputError`, before anything is written where that can be known."""
    with starting(), clean_stdout(), activity("importing libraries"):
        from arctic_training.checkpoint.saved_model import find_saved_model
        from arctic_training.deployment.export import ExportOptions, export
        from arctic_training.deployment.gguf import convert_to_gguf, find_converter, gguf_path
        from arctic_training.deployment.hub import push_to_hub, require_token

    converter = find_converter() if arguments.gguf else None
    if arguments.gguf and (file := gguf_path(arguments.output, arguments.gguf)).exists():
        raise InputError(f"{file} exists, and is not overwritten; give another folder, or remove it")
    token = require_token(arguments.push_to_hub) if arguments.push_to_hub else ""
    with starting():
        saved = find_saved_model(arguments.checkpoint, best=arguments.best)
    options = ExportOptions(
        arguments.dtype,
        arguments.max_shard_size,
        arguments.ema,
        arguments.recipe,
        arguments.trust_remote_code,
        arguments.push_to_hub,
    )
    with starting(), clean_stdout(), activity(f"exporting {saved.name}"):
        report = export(saved, arguments.output, options)
    size = sum(path.stat().st_size for path in arguments.output.glob("*.safetensors"))
    print(f"{arguments.output}: {size / 10**6:,.1f} MB of weights, from {saved.name}")
    if report is not None:
        print(f"merged: logits differ by {report.error:.2g}, where the adapter changes them by {report.effect:.2g}")
    if converter is not None:
        print(convert_to_gguf(arguments.output, converter, arguments.gguf))
    if token:
        print(push_to_hub(arguments.output, arguments.push_to_hub, token, private=arguments.private))
    return 0


def _bytes(text: str) -> int:
    """Returns a number of bytes, such as ``5GB`` or ``200 MB``. Raises ArgumentTypeError for anything else."""
    number, unit = text[:-2].strip(), text[-2:].lower()
    if unit not in _UNITS:
        number, unit = text, ""
    try:
        size = int(float(number) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB or 200MB, got {text!r}")
    return size
