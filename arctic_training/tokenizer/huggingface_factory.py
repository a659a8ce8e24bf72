"""Tokenizers of transformers."""

import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from arctic_training.checkpoint.saved_model import unloadable
from arctic_training.config.checks.files import not_on_hub
from arctic_training.config.checks.hub import unavailable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.model import NAMES_MODEL
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.errors.types import ModelError
from arctic_training.tokenizer.factory import TokenizerFactory, read_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PADDING_LIKE = (
    re.compile(r"[<\[]\W*(finetune_right_)?pad\W*[>\]]", re.IGNORECASE),
    re.compile(r"[<\[].*(reserved|unused|placeholder|dummy|extra_)\D*\d*.*[>\]]", re.IGNORECASE),
)
"""Tokens of a vocabulary for padding, and reserved tokens."""

_FILES = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"]
_FILES += ["sentencepiece.bpe.model", "tekken.json", "tiktoken.model"]
"""One of these is in every folder with a tokenizer."""


class HFTokenizerConfig(TokenizerConfig):
    """The tokenizer section for a tokenizer of transformers."""

    name_or_path: Annotated[str | None, RESUME_SAFE, NAMES_MODEL] = Field(default=None, min_length=1)
    """A folder, a name on the hub, a ``.gguf`` file, or a run, as for the model; null: the model's own."""
    tokenize_kwargs: dict[str, Any] = {}
    """Keyword arguments of every call of the tokenizer."""
    pad_token: str | None = Field(default=None, min_length=1)
    """A token of the vocabulary to pad with; null: see the class."""
    chat_template: Annotated[str | None, RESUME_SAFE] = None
    """The template, or the name of a file beside the recipe that holds it; null: the tokenizer's own."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the tokenizer's files."""

    def missing_paths(self) -> list[Problem]:
        problem = "" if self.name_or_path is None else unloadable(self.name_or_path)
        return problems_of_keys({"name_or_path": problem})


class HFTokenizerFactory(TokenizerFactory[HFTokenizerConfig]):
    """Makes a tokenizer of transformers whose pad token is not its end token.

    Where the tokenizer has no pad token, or the end token is the pad token, another one is chosen: one that the
    vocabulary has for padding, a reserved one, the unknown token, ``<|endoftext|>`` where turns end with another token;
    or else a new one, ``<|pad|>``, for which the model gets a row. A model whose end token counts as padding may never
    learn to end, since libraries leave padding out of the loss.
    """

    name = "huggingface"

    def create_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Raises `ModelError` for a tokenizer that cannot be read."""
        tokenizer = self.read_tokenizer()
        if (template := read_template(self.config.chat_template, self.trainer.config.recipe_dir)) is not None:
            tokenizer.chat_template = template
        set_pad_token(tokenizer, self.config.pad_token)
        return tokenizer

    def read_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Returns the tokenizer as its files have it. Raises `ModelError` for one that cannot be read."""
        name = self.config.name_or_path or getattr(self.trainer.config.model, "name_or_path", None)
        if not name:
            raise ModelError("tokenizer.name_or_path: give a name; the model section has none")
        key = "tokenizer.name_or_path" if self.config.name_or_path else "model.name_or_path"
        return load_tokenizer(name, key, trust_remote_code=self.config.trust_remote_code)


def load_tokenizer(name: str, key: str, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Returns the tokenizer ``name``: a folder, a name on the hub, or a ``.gguf`` file. ``key`` names it in messages.

    Raises `ModelError` for one that cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path, options = Path(name).expanduser(), dict[str, Any](trust_remote_code=trust_remote_code)
    if path.is_dir() and not has_tokenizer(path):
        raise ModelError(f"{key}: {name}: no tokenizer in it; give tokenizer.name_or_path")
    if why := unavailable(name):
        raise ModelError(f"{key}: {name}: {why}")
    if path.suffix == ".gguf":
        path, options["gguf_file"] = path.parent, path.name
    try:
        # for some models, such as Qwen2, transformers would build a tokenizer of its own from a lexer's vocabulary
        loader = PreTrainedTokenizerFast if _is_saved_lexer(path) else AutoTokenizer
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(str(path) if path.is_dir() else name, **options)
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        if "trust_remote_code" in text:
            text = "it brings Python code of its own, which is run only with tokenizer.trust_remote_code: true"
        elif not path.exists():
            text = not_on_hub(text)
        else:
            text = f"its tokenizer cannot be read: {type(error).__name__}: {text}"
        raise ModelError(f"{key}: {name}: {text}") from error
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Returns whether ``folder`` holds the files of a tokenizer."""
    return any((folder / file).exists() for file in _FILES)


def _is_saved_lexer(folder: Path) -> bool:
    """Returns whether a lexer of this package was saved in ``folder``."""
    try:
        return "refuse_unknown" in json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):  # reported when it is loaded
        return False


def set_pad_token(tokenizer: "PreTrainedTokenizerBase", pad_token: str | None = None) -> None:
    """Sets the pad token to ``pad_token``, or chooses one as `HFTokenizerFactory` describes.

    Raises `ModelError` when ``pad_token`` is not in the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    if pad_token is not None:
        if pad_token not in vocabulary:
            raise ModelError(f"tokenizer.pad_token: {pad_token!r} is not in the vocabulary")
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _unused_token(tokenizer, vocabulary) or "<|pad|>"
        if tokenizer.pad_token not in vocabulary:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


def _unused_token(tokenizer: "PreTrainedTokenizerBase", vocabulary: Mapping[str, int]) -> str | None:
    """Returns a token of the vocabulary that no text ends with and the chat template does not have, or None."""
    template = str(tokenizer.chat_template or "")
    in_use = {tokenizer.eos_token, tokenizer.bos_token}
    by_id = sorted(vocabulary, key=lambda token: vocabulary[token])
    free = [token for token in by_id if token not in in_use and token not in template]
    named = [token for token in (tokenizer.unk_token, "<|endoftext|>") if token in free]
    candidates = (token for pattern in _PADDING_LIKE for token in free if pattern.fullmatch(token))
    return next(chain(candidates, named), None)
