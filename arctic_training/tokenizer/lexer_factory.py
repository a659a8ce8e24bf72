"""A lexer: a tokenizer for symbolic text, whose vocabulary is in the recipe."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from arctic_training.config.checks.problems import Problem, Problems, shown
from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.tokenizer.factory import TokenizerFactory, read_template
from arctic_training.tokenizer.lexemes import split_patterns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MAX_TOKENS = 1_000_000
"""Tokens of a vocabulary; more are a mistake."""
_MAX_LENGTH = 100
"""Characters of a token."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ ' ' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' ' + eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] + ' ' + sep_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ' }}{% endif %}"
)


def _check_token(token: str) -> str:
    if not token:
        raise ValueError("a token without characters")
    if " " in token or not token.isprintable():
        raise ValueError(f"{token!r}: a token has no white space and no control characters")
    if len(token) > _MAX_LENGTH:
        raise ValueError(f"{shown(token)}: a token has at most {_MAX_LENGTH} characters, not {len(token)}")
    return token


def _check_range(value: object) -> object:
    if not isinstance(value, (list, tuple)) or [type(one) for one in value] != [str, int, int]:
        text = "[" + ", ".join(map(shown, value)) + "]" if isinstance(value, (list, tuple)) else shown(value)
        raise ValueError(f"{text}: expected [prefix, min, max], a string and two integers, such as [x, 0, 2]")
    prefix, low, high = value
    if low > high:
        raise ValueError(f"[{shown(prefix)}, {low}, {high}]: min is above max")
    if high - low >= _MAX_TOKENS:
        raise ValueError(f"{high - low + 1:,} tokens; a vocabulary has at most {_MAX_TOKENS:,}")
    _check_token(f"{prefix}{low}")
    return value


Token = Annotated[str, AfterValidator(_check_token)]
Range = Annotated[tuple[str, int, int], BeforeValidator(_check_range)]


class Vocabulary(BaseConfig):
    """The tokens of a lexer that are not special."""

    range: dict[str, Range] = {}
    """Tokens that end in a number: ``[prefix, min, max]`` under any key, inclusive. The prefix may be empty."""
    misc: list[Token] = []
    """Any other tokens."""


class SpecialTokens(BaseConfig):
    """The special tokens of a lexer."""

    pad: Token = "[PAD]"
    """Pads short rows."""
    bos: Token = "[BOS]"
    """Begins a text, for models that need it. It is never added by itself."""
    eos: Token = "[EOS]"
    """Ends a completion or a text."""
    unk: Token = "[UNK]"
    """Replaces what is not in the vocabulary, where ``strict`` is false."""
    sep: Token = "[SEP]"
    """Ends a problem: the answer follows."""


class NumberPolicy(BaseConfig):
    """Rules by which numbers are split into tokens."""

    attach_sign: bool = True
    """A sign before a number, and not after an operand, is part of the number's first token; false: it is a token."""
    digit_group: int = Field(default=0, ge=0, le=100)
    """Digits per token of a number, counted from the decimal point; 0: a number is one token."""
    allow_float: bool = True
    """A point between digits is part of a number."""


class LexerConfig(TokenizerConfig):
    """The tokenizer section for a lexer."""

    vocab: Vocabulary
    """The tokens. Their ids are in this order: special tokens, ranges, others, each as written."""
    special_tokens: SpecialTokens = SpecialTokens()
    """Tokens around texts. Within a text they are tokens like any other."""
    number_policy: NumberPolicy = NumberPolicy()
    """How numbers are split into tokens."""
    strict: Annotated[bool, RESUME_SAFE] = True
    """Refuse data with tokens outside the vocabulary, naming them all; false: they become the unknown token."""
    chat_template: Annotated[str | None, RESUME_SAFE] = None
    """The template, or the name of a file beside the recipe that holds it; null: the problem, ``sep``, the answer,
    ``eos``."""

    @model_validator(mode="after")
    def _check_tokens_unique(self) -> "LexerConfig":
        count = len(self.vocab.misc) + sum(high - low + 1 for _, low, high in self.vocab.range.values())
        if not count:
            raise ValueError("vocab: it has no tokens; give vocab.range or vocab.misc")
        if count > _MAX_TOKENS:
            raise ValueError(f"vocab: {count:,} tokens; a vocabulary has at most {_MAX_TOKENS:,}")
        paths: dict[str, tuple[str, ...]] = {}
        problems: dict[tuple[str, ...], Problem] = {}
        for path, token in self._tokens_with_paths():
            if path != (first := paths.setdefault(token, path)):
                problems.setdefault(
                    path, Problem(path, f"{token!r} is given twice; it is in tokenizer.{'.'.join(first)} too")
                )
        if problems:
            raise Problems(problems.values())
        return self

    def _tokens_with_paths(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yields every token in the order of ids, with its path in the section."""
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
        """All tokens, in the order of their ids."""
        return [token for _, token in self._tokens_with_paths()]


class LexerFactory(TokenizerFactory[LexerConfig]):
    """Makes a tokenizer that splits symbolic text into the tokens of a vocabulary in the recipe.

    At each place the longest token or number that begins there is taken; white space only separates. A token that ends
    in a digit does not end before another one. A number is ``12`` or, with ``allow_float``, ``3.14``; its digits are
    ASCII, and its tokens depend on ``number_policy`` alone, not on the vocabulary. With ``digit_group`` the whole part
    is cut from the right and the fraction from the left, zeros are kept, and the point is a token.

    A sign is attached to the number that it touches unless a letter, a digit, ``_`` or a closing bracket touches it
    from the left: ``3-5`` are three tokens, ``3 -5`` and ``3*-5`` have ``-5``. Where the vocabulary has no such first
    token with its sign, the sign is a token of its own.

    Unknown text is split into words: runs of letters and digits, numbers, or symbols. Decoding puts a space between
    tokens, and its result is split into the same tokens. transformers loads the saved tokenizer without this package.
    """

    name = "lexer"

    def create_tokenizer(self) -> "PreTrainedTokenizerFast":
        """Returns the tokenizer. Raises `ModelError` for a template file that cannot be read."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        config = self.config
        special = {name: getattr(config.special_tokens, name) for name in SpecialTokens.model_fields}
        tokens = config.tokens
        pieces, parts = split_patterns(tokens, list(special.values()), **dict(config.number_policy))
        steps = [pre_tokenizers.Split(Regex(pieces), "removed", invert=True)]  # removes white space
        if parts:
            steps.append(pre_tokenizers.Split(Regex(parts), "isolated"))
        ids = {token: number for number, token in enumerate(tokens)}
        inner = Tokenizer(models.WordLevel(ids, unk_token=special["unk"]))
        inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
        template = read_template(config.chat_template, self.trainer.config.recipe_dir)
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            **{f"{name}_token": token for name, token in special.items()},
            split_special_tokens=True,  # they are split as all others are: the longest first
            clean_up_tokenization_spaces=False,
            chat_template=_CHAT_TEMPLATE if template is None else template,
            refuse_unknown=config.strict,  # kept in the config of the saved tokenizer
        )
