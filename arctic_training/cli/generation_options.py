"""Options of the commands that load a model, and that generate with it."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from arctic_training.display.activity import activity
from arctic_training.display.starting import starting
from arctic_training.errors.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHECKPOINT = (
    "a run folder (its newest checkpoint), a checkpoint, a folder of transformers, an adapter, a .gguf file, or a name "
    "on the hub"
)


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument CHECKPOINT, and what it is loaded with."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    add("--best", action="store_true", help="of a run folder: the best checkpoint, not the newest")
    add("--dtype", choices=["bf16", "fp16", "fp32"], help="dtype of the weights (default: as they are saved)")
    add("--ema", action="store_true", help="of a checkpoint of type deepspeed: the averaged weights")
    add("--recipe", type=Path, help="of a checkpoint of type deepspeed outside its run folder: its recipe")
    add("--trust-remote-code", action="store_true", help="run the Python code that comes with the model")


def add_generation_options(parser: argparse.ArgumentParser, *, max_new_tokens: int, temperature: float) -> None:
    """Adds the options of sampling, by the names of `GenerationKeys`, with these defaults."""
    add = parser.add_argument
    add("--device", help="where the model is (default: a GPU where there is one)")
    tokens = f"longest completion in tokens (default: {max_new_tokens})"
    add("--max-new-tokens", type=int, default=max_new_tokens, metavar="N", help=tokens)
    greedy = f"divisor of the logits; 0: the most likely tokens (default: {temperature:g})"
    add("--temperature", type=float, default=temperature, metavar="T", help=greedy)
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K most likely tokens; 0: from all")
    add("--top-p", type=float, default=1.0, metavar="P", help="from the likeliest with probability P together")
    add("--min-p", type=float, default=0.0, metavar="P", help="from tokens at least P times as likely as the likeliest")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: fewer tokens that occurred before")
    add("--no-repeat-ngram-size", type=int, default=0, metavar="N", help="no N tokens in a row occur twice")
    add("--num-beams", type=int, default=1, metavar="N", help="beam search, with --temperature 0")
    add("--stop", action="append", default=[], metavar="TEXT", help="text that ends a completion; may be repeated")
    add("--seed", type=int, default=42, help="the same seed gives the same text (default: 42)")


def clean_stdout() -> "contextlib.redirect_stdout[TextIO]":
    """Has libraries that print while they are imported, or keep standard output to log to, use standard error."""
    return contextlib.redirect_stdout(sys.stderr)


def load(arguments: argparse.Namespace) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Returns the model and the tokenizer of CHECKPOINT. Raises `InputError` where one of them is missing."""
    with starting(), clean_stdout():
        with activity("importing libraries"):
            from arctic_training.deployment.load import load_pretrained
        with activity(f"loading {arguments.checkpoint}"):
            model, tokenizer = load_pretrained(
                arguments.checkpoint,
                best=arguments.best,
                dtype=arguments.dtype,
                device=arguments.device,
                averaged=arguments.ema,
                recipe=arguments.recipe,
                trust_remote_code=arguments.trust_remote_code,
            )
    if tokenizer is None:
        raise InputError(f"{arguments.checkpoint}: no tokenizer in it")
    if not model.can_generate():
        raise InputError(f"{arguments.checkpoint}: a {type(model).__name__} does not generate text")
    return model, tokenizer
