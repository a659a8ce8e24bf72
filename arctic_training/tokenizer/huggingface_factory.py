"""Tokenizers of transformers."""

from pathlib import Path
from typing import Any

from pydantic import Field

from arctic_training.config.tokenizer import TokenizerConfig
from arctic_training.errors import ModelError
from arctic_training.tokenizer.factory import TokenizerFactory

_RESERVED = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unk>", "[UNK]")


class HFTokenizerConfig(TokenizerConfig):
    name_or_path: str | None = Field(default=None, min_length=1)
    """A folder, a name on the hub, or a ``.gguf`` file; the model's own when left out."""
    tokenize_kwargs: dict[str, Any] = {}
    """Passed to the tokenizer with every text."""
    chat_template: str | None = None
    """The template itself, or a file beside the recipe that holds it; the tokenizer's own when left out."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the tokenizer's files."""


class HFTokenizerFactory(TokenizerFactory[HFTokenizerConfig]):
    """A tokenizer of transformers with a pad token that ends nothing.

    Where the tokenizer has no pad token, or the end token serves as one, a token that is in the vocabulary for that
    purpose or unused becomes the pad token, or else a new one ``<|pad|>``, for which the model gets a row: a model
    whose end token is masked as padding never learns to end.
    """

    name = "huggingface"
    config_type = HFTokenizerConfig

    def create_tokenizer(self) -> Any:
        """Raises `ModelError` for a tokenizer that cannot be read."""
        from transformers import AutoTokenizer

        where = self.config.name_or_path or getattr(self.trainer.config.model, "name_or_path", None)
        if where is None:
            raise ModelError("tokenizer.name_or_path: give one; the model names none")
        path, options = Path(where), {"trust_remote_code": self.config.trust_remote_code}
        if path.suffix == ".gguf":
            where, options = str(path.parent), {**options, "gguf_file": path.name}
        if where.startswith((".", "/", "~")) and not path.exists():
            raise ModelError(f"tokenizer.name_or_path: {path}: no such file or folder")
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
        except Exception as error:
            raise ModelError(f"tokenizer.name_or_path: {where}: {' '.join(str(error).split())[:500]}") from error
        if (template := self._template()) is not None:
            tokenizer.chat_template = template
        give_pad_token(tokenizer)
        return tokenizer

    def _template(self) -> str | None:
        told = self.config.chat_template
        if told is None or "{" in told or "\n" in told:
            return told
        path = self.trainer.config.recipe_dir / told
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"tokenizer.chat_template: {path}: {error.strerror}") from error


def give_pad_token(tokenizer: Any) -> None:
    """See `HFTokenizerFactory`."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    known = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    spare = next((token for token in _RESERVED if token in known and token not in taken), None)
    if spare is None:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        tokenizer.pad_token = spare
