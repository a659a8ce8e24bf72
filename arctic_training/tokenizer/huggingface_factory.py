"""Tokenizers of transformers."""

import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.paths import beyond_reach, unreadable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.errors.types import ModelError
from arctic_training.tokenizer.factory import TokenizerFactory, read_template

_SPARE = (
    re.compile(r"[<\[]\W*(finetune_right_)?pad\W*[>\]]", re.IGNORECASE),
    re.compile(r"[<\[].*(reserved|unused|placeholder|dummy|extra_)\D*\d*.*[>\]]", re.IGNORECASE),
)
"""Tokens that a vocabulary holds for padding, and those that it holds for nothing yet."""


_FILES = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"]
_FILES += ["sentencepiece.bpe.model", "tekken.json", "tiktoken.model"]
"""One of these is in every folder with a tokenizer."""


class HFTokenizerConfig(TokenizerConfig):
    name_or_path: Annotated[str | None, RESUME_SAFE] = Field(default=None, min_length=1)
    """A folder, a name on the hub, or a ``.gguf`` file; the model's own when left out."""
    tokenize_kwargs: dict[str, Any] = {}
    """Passed to the tokenizer with every text."""
    pad_token: str | None = Field(default=None, min_length=1)
    """A token of the vocabulary to pad with; see the class."""
    chat_template: Annotated[str | None, RESUME_SAFE] = None
    """The template itself, or a file beside the recipe that holds it; the tokenizer's own when left out."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the tokenizer's files."""

    def missing_paths(self) -> list[Problem]:
        told = unreadable(self.name_or_path or "")
        return [Problem(("name_or_path",), told)] if told else []


class HFTokenizerFactory(TokenizerFactory[HFTokenizerConfig]):
    """A tokenizer of transformers with a pad token that ends nothing.

    Where the tokenizer has no pad token, or the end token serves as one, another becomes the pad token: one that is in
    the vocabulary for that purpose, a reserved one, the one for unknown text, ``<|endoftext|>`` where turns end with
    another; or else a new one, ``<|pad|>``, for which the model gets a row. A model whose end token counts as padding
    may never learn to end, in the hands of any library that leaves padding out of the loss.
    """

    name = "huggingface"
    config_type = HFTokenizerConfig

    def create_tokenizer(self) -> Any:
        """Raises `ModelError` for a tokenizer that cannot be read."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        where = self.config.name_or_path or getattr(self.trainer.config.model, "name_or_path", None)
        if where is None:
            raise ModelError("tokenizer.name_or_path: give one; the model names none")
        key = "tokenizer.name_or_path" if self.config.name_or_path else "model.name_or_path"
        path, options = Path(where).expanduser(), dict[str, Any](trust_remote_code=self.config.trust_remote_code)
        if where.startswith((".", "/", "~")) and not path.exists():
            raise ModelError(f"{key}: {where}: no such file or folder")
        if path.is_dir() and not any((path / name).exists() for name in _FILES):
            raise ModelError(f"{key}: {where}: no tokenizer in it; give tokenizer.name_or_path")
        if path.suffix == ".gguf":
            path, options["gguf_file"] = path.parent, path.name
        try:
            # for some models, such as Qwen2, transformers would make one of its own out of a lexer's vocabulary
            loader = PreTrainedTokenizerFast if _of_a_lexer(path) else AutoTokenizer
            tokenizer = loader.from_pretrained(str(path) if path.is_dir() else where, **options)
        except Exception as error:
            text = " ".join(str(error).split())[:500]
            if "trust_remote_code" in text:
                text = "it brings Python code of its own, which is run only with tokenizer.trust_remote_code: true"
            elif not path.exists():
                text = beyond_reach(text)
            else:
                text = f"its tokenizer cannot be read: {type(error).__name__}: {text}"
            raise ModelError(f"{key}: {where}: {text}") from error
        if (template := read_template(self.config.chat_template, self.trainer.config.recipe_dir)) is not None:
            tokenizer.chat_template = template
        give_pad_token(tokenizer, self.config.pad_token)
        return tokenizer


def _of_a_lexer(folder: Path) -> bool:
    try:
        return "refuse_unknown" in json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):  # what is wrong with it, its own loader says
        return False


def give_pad_token(tokenizer: Any, wanted: str | None = None) -> None:
    """See `HFTokenizerFactory`. Raises `ModelError` when the token that is wanted is not in the vocabulary."""
    known = tokenizer.get_vocab()
    if wanted is not None:
        if wanted not in known:
            raise ModelError(f"tokenizer.pad_token: {wanted!r} is not in the vocabulary")
        tokenizer.pad_token = wanted
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare(tokenizer, known) or "<|pad|>"
        if tokenizer.pad_token not in known:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


def _spare(tokenizer: Any, known: Mapping[str, int]) -> str | None:
    template = str(tokenizer.chat_template or "")
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    free = [
        token for token in sorted(known, key=lambda one: known[one]) if token not in taken and token not in template
    ]
    named = [token for token in (tokenizer.unk_token, "<|endoftext|>") if token in free]
    found = (token for pattern in _SPARE for token in free if pattern.fullmatch(token))
    return next(chain(found, named), None)
