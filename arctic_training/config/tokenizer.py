"""The section of the tokenizer, as far as every tokenizer has one."""

from arctic_training.config.base import ComponentConfig


class TokenizerConfig(ComponentConfig):
    pass
