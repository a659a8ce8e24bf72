"""The base of tokenizer factories."""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.errors.types import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

C = TypeVar("C", bound=TokenizerConfig)


class TokenizerFactory(Factory[C, "PreTrainedTokenizerBase | None"], kind="tokenizer_factory"):
    """Makes the tokenizer of a run. A subclass defines `create_tokenizer`."""

    config_type: ClassVar[type[ComponentConfig]] = TokenizerConfig

    def __call__(self) -> "PreTrainedTokenizerBase | None":
        """Returns the tokenizer, or None for a run without text."""
        return self.create_tokenizer()

    @hook("create_tokenizer")
    @abstractmethod
    def create_tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """Returns a tokenizer of transformers, or None for a run without text."""


class NoTokenizerFactory(TokenizerFactory[TokenizerConfig]):
    """Makes no tokenizer, for data that are not text."""

    name = "none"

    def create_tokenizer(self) -> None:
        return None


def read_template(template: str | None, folder: Path) -> str | None:
    """Returns a chat template, which a recipe in ``folder`` gives as text or by the name of a file.

    Raises `ModelError` for a file that cannot be read.
    """
    if template is None or "{" in template or "\n" in template:
        return template
    path = folder / template
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"tokenizer.chat_template: {path}: {error.strerror}") from error
