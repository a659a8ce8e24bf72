"""Makes the tokenizer of a run. The base of every tokenizer factory."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.errors.types import ModelError

C = TypeVar("C", bound=TokenizerConfig)


class TokenizerFactory(Factory[C, Any], kind="tokenizer_factory"):
    """A subclass writes `create_tokenizer`."""

    config_type: ClassVar[type[ComponentConfig]] = TokenizerConfig

    def __call__(self, *args: Any) -> Any:
        return self.create_tokenizer()

    @hook("create_tokenizer")
    @abstractmethod
    def create_tokenizer(self) -> Any:
        """The tokenizer; None for a run without text."""


class NoTokenizerFactory(TokenizerFactory[TokenizerConfig]):
    """For data that are no text."""

    name = "none"

    def create_tokenizer(self) -> None:
        return None


def read_template(told: str | None, folder: Path) -> str | None:
    """The chat template that a recipe in ``folder`` gives, itself or by the name of a file. Raises `ModelError`."""
    if told is None or "{" in told or "\n" in told:
        return told
    path = folder / told
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"tokenizer.chat_template: {path}: {error.strerror}") from error
