"""A tokenizer for symbolic text, whose vocabulary the recipe gives: a lexer."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.problems import Problem, Problems, shown
from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.tokenizer.factory import TokenizerFactory, read_template
from arctic_training.tokenizer.lexemes import splits

_MOST = 1_000_000
"""Tokens of a vocabulary: more are a mistake."""
_LONGEST = 100
"""Characters of a token."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ ' ' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' ' + eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] + ' ' + sep_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ' }}{% endif %}"
)


def _of_a_vocabulary(token: str) -> str:
    if not token:
        raise ValueError("a token of no character")
    if " " in token or not token.isprintable():
        raise ValueError(f"{token!r}: a token has no white space and no control characters")
    if len(token) > _LONGEST:
        raise ValueError(f"{shown(token)}: a token has at most {_LONGEST} characters, not {len(token)}")
    return token


def _range(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or [type(one) for one in value] != [str, int, int]:
        told = "[" + ", ".join(map(shown, value)) + "]" if isinstance(value, (list, tuple)) else shown(value)
        raise ValueError(f"{told}: [prefix, min, max] is wanted, a text and two whole numbers, such as [x, 0, 2]")
    prefix, low, high = value
    if low > high:
        raise ValueError(f"[{shown(prefix)}, {low}, {high}]: min is above max")
    if high - low >= _MOST:
        raise ValueError(f"{high - low + 1:,} tokens; a vocabulary has at most {_MOST:,}")
    _of_a_vocabulary(f"{prefix}{low}")
    return value


Token = Annotated[str, AfterValidator(_of_a_vocabulary)]
Range = Annotated[tuple[str, int, int], BeforeValidator(_range)]


class Vocabulary(BaseConfig):
    range: dict[str, Range] = {}
    """Tokens that end in a number, under any key: ``[prefix, min, max]``, both ends in. The prefix may be empty."""
    misc: list[Token] = []
    """Any other tokens."""


class SpecialTokens(BaseConfig):
    pad: Token = "[PAD]"
    """Fills rows that are too short."""
    bos: Token = "[BOS]"
    """Begins a text, for models that want it. It is put nowhere unasked."""
    eos: Token = "[EOS]"
    """Ends an answer or a text."""
    unk: Token = "[UNK]"
    """Stands for what is not in the vocabulary, where ``strict`` is false."""
    sep: Token = "[SEP]"
    """Ends a problem: what follows is the answer."""


class NumberPolicy(BaseConfig):
    attach_sign: bool = True
    """A sign before a number, and not after an operand, belongs to the number's first token; else it is its own."""
    digit_group: int = Field(default=0, ge=0, le=100)
    """Digits of a token of a number, counted from the decimal point; 0: a number is one token."""
    allow_float: bool = True
    """A point between digits is part of a number."""


class LexerConfig(TokenizerConfig):
    vocab: Vocabulary
    """The tokens. Special ones come first, then ranges and the others, as they are written."""
    special_tokens: SpecialTokens = SpecialTokens()
    """What is put around texts. Where it stands in a text it is a token like any other."""
    number_policy: NumberPolicy = NumberPolicy()
    """How numbers are read."""
    strict: Annotated[bool, RESUME_SAFE] = True
    """Refuse data with tokens outside the vocabulary, naming them all; else they become the unknown token."""
    chat_template: Annotated[str | None, RESUME_SAFE] = None
    """The template itself, or a file beside the recipe that holds it. When left out: the problem, ``sep``, the answer,
    ``eos``."""

    @model_validator(mode="after")
    def _each_token_once(self) -> "LexerConfig":
        count = len(self.vocab.misc) + sum(high - low + 1 for _, low, high in self.vocab.range.values())
        if not count:
            raise ValueError("vocab: there is no token in it; give vocab.range or vocab.misc")
        if count > _MOST:
            raise ValueError(f"vocab: {count:,} tokens; a vocabulary has at most {_MOST:,}")
        found: dict[str, tuple[str, ...]] = {}
        problems: dict[tuple[str, ...], Problem] = {}
        for path, token in self._placed():
            if path != (there := found.setdefault(token, path)):
                problems.setdefault(
                    path, Problem(path, f"{token!r} is given twice; it is in tokenizer.{'.'.join(there)} too")
                )
        if problems:
            raise Problems(problems.values())
        return self

    def _placed(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for name in SpecialTokens.model_fields:
            yield ("special_tokens", name), getattr(self.special_tokens, name)
        for key, (prefix, low, high) in self.vocab.range.items():
            path = ("vocab", "range", key)
            for number in range(low, high + 1):
                yield path, f"{prefix}{number}"
        for n, token in enumerate(self.vocab.misc):
            yield ("vocab", "misc", str(n)), token

    @property
    def tokens(self) -> list[str]:
        """All of them, in the order of their ids."""
        return [token for _, token in self._placed()]


class LexerFactory(TokenizerFactory[LexerConfig]):
    """Splits symbolic text into the tokens of a vocabulary that the recipe gives.

    The longest token or number that begins at a place is taken; white space only separates. A token that ends in a
    digit does not end before another one. A number is ``12`` or, with ``allow_float``, ``3.14``; its digits are ASCII,
    and ``number_policy`` alone says what its tokens are, whichever the vocabulary has. With ``digit_group`` the whole
    part is cut from the right and the fraction from the left, zeros are kept, and the point is a token.

    A sign is attached to the number that it touches unless a letter, a digit, ``_`` or a closing bracket touches it
    from the left: ``3-5`` are three tokens, ``3 -5`` and ``3*-5`` have ``-5``. Where the vocabulary has no such first
    token with its sign, the sign is a token of its own.

    What is unknown is read as whole words: a run of letters and digits, a number, or a symbol. Decoding puts a space
    between tokens, and what it gives is read as the same tokens. transformers loads what is saved without this package.
    """

    name = "lexer"
    config_type = LexerConfig

    def create_tokenizer(self) -> Any:
        """Raises `ModelError` for a template that cannot be read."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        config = self.config
        special = {name: getattr(config.special_tokens, name) for name in SpecialTokens.model_fields}
        tokens = config.tokens
        pieces, parts = splits(tokens, list(special.values()), **dict(config.number_policy))
        steps = [pre_tokenizers.Split(Regex(pieces), "removed", invert=True)]  # what is removed is white space
        if parts:
            steps.append(pre_tokenizers.Split(Regex(parts), "isolated"))
        numbered = {token: number for number, token in enumerate(tokens)}
        inner = Tokenizer(models.WordLevel(numbered, unk_token=special["unk"]))
        inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
        template = read_template(config.chat_template, self.trainer.config.recipe_dir)
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            **{f"{name}_token": token for name, token in special.items()},
            split_special_tokens=True,  # they are found as all others are: the longest first
            clean_up_tokenization_spaces=False,
            chat_template=_CHAT_TEMPLATE if template is None else template,
            refuse_unknown=config.strict,  # kept in the saved tokenizer's config, for whoever loads it
        )
