"""The section of the tokenizer, as far as every tokenizer has one."""

from typing import Any

from arctic_training.config.sections.base import ComponentConfig


class TokenizerConfig(ComponentConfig):
    pass


def is_lexer(tokenizer: Any) -> bool:
    """Whether a lexer is what ``tokenizer`` was made by, or saved by and loaded again."""
    return "refuse_unknown" in getattr(tokenizer, "init_kwargs", {})
