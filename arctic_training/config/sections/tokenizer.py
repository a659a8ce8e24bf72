"""The section of a tokenizer: the keys that all tokenizers have."""

from arctic_training.config.sections.base import ComponentConfig


class TokenizerConfig(ComponentConfig):
    """Base of the sections of tokenizers."""


def is_lexer(tokenizer: object) -> bool:
    """Returns whether a lexer built ``tokenizer``, or the tokenizer that was saved and loaded as it."""
    return "refuse_unknown" in getattr(tokenizer, "init_kwargs", {})
