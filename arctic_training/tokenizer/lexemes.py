"""The regular expressions (Oniguruma) by which `tokenizers` splits a text into the tokens of a lexer."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby

_WORD = r"\p{L}\p{M}\p{N}_"
_NO_DIGIT = "(?![0-9])"


def split_patterns(
    tokens: Sequence[str], special: Sequence[str], *, attach_sign: bool, digit_group: int, allow_float: bool
) -> tuple[str, str]:
    """Returns the pattern of each piece of a text, and that of each token of a piece, or "" if a piece is one token.

    ``special`` are those of ``tokens`` after which a sign belongs to a number. Every character but white space is in a
    piece, and no part of a text is read more often than tokens are long: the time is linear.
    """
    number = r"[0-9]+(?:\.[0-9]+)?" if allow_float else "[0-9]+"
    is_number = re.compile(f"[+-]?{number}")
    begins_number = re.compile(r"[+-]?[0-9]+\." if allow_float else "(?!)")

    def guard(token: str) -> str:
        return _NO_DIGIT if token[-1] in "0123456789" or begins_number.fullmatch(token) else ""

    # a token that neither is a number nor begins one is longer than any number at its place; so those come first,
    # then numbers, and last what may begin one: a sign
    others = [token for token in tokens if token not in ("+", "-") and not is_number.fullmatch(token)]
    pieces = [_longest(sorted(others), guard)] if others else []
    if attach_sign and (signed := _signed(tokens, number, digit_group)):
        ends = "|".join("".join(map(_literal, token)) for token in special)
        pieces.append(rf"(?:(?<![{_WORD})\]}}])|(?<={ends})){signed}")
    pieces += [number, f"[{_WORD}]+", r"[^\t-\r \x{85}\p{Z}]"]
    if not digit_group:
        return "|".join(pieces), ""
    not_number = rf"\A(?![+-]?{number}\z).+\z"
    first = rf"\A[+-]?[0-9]{{1,{digit_group}}}(?={_groups(digit_group)}(?:\.|\z))"
    return "|".join(pieces), rf"{not_number}|{first}|[0-9]{{1,{digit_group}}}|\."


def _signed(tokens: Sequence[str], number: str, digit_group: int) -> str:
    """Returns the pattern of a number with its sign, where ``tokens`` have its first token with the sign; else ""."""
    signed = re.compile(f"[+-][0-9]{{1,{digit_group}}}" if digit_group else f"[+-]{number}")
    heads = sorted(token for token in tokens if signed.fullmatch(token))
    if not heads:
        return ""
    if digit_group:
        return f"(?={_longest(heads)}{_groups(digit_group)}{_NO_DIGIT})[+-]{number}"
    no_number = r"(?!\.?[0-9])" if "." in number else _NO_DIGIT
    return _longest(heads, lambda token: _NO_DIGIT if "." in token else no_number)


def _groups(size: int) -> str:
    """Returns the pattern of whole groups of ``size`` digits."""
    return rf"(?>(?:[0-9]{{{size}}})*)"


def _longest(tokens: Sequence[str], guard: Callable[[str], str] = lambda token: "", at: int = 0) -> str:
    """Returns the pattern of the longest of sorted ``tokens``, equal up to ``at``, each followed by its ``guard``."""
    ends: list[str] = []
    rests: dict[str, list[str]] = {}  # few for a range of numbers: the rests after 1, 2 and 3 are mostly equal
    for first, group in groupby(tokens, key=lambda token: token[at : at + 1]):
        if first:
            rests.setdefault(_longest(list(group), guard, at + 1), []).append(first)
        else:
            ends.append(guard(next(group)))
    branches = [_one_of(firsts) + rest for rest, firsts in rests.items()] + ends
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _one_of(characters: Sequence[str]) -> str:
    literals = "".join(map(_literal, characters))
    return literals if len(characters) == 1 else f"[{literals}]"


def _literal(character: str) -> str:
    return character if character.isascii() and character.isalnum() else rf"\x{{{ord(character):x}}}"
