"""What of a text is one token to a lexer: the regular expressions, Oniguruma's, by which `tokenizers` splits a text."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby

_WORD = r"\p{L}\p{M}\p{N}_"
_NO_DIGIT = "(?![0-9])"


def splits(
    tokens: Sequence[str], special: Sequence[str], *, attach_sign: bool, digit_group: int, allow_float: bool
) -> tuple[str, str]:
    """What matches each piece of a text, and what matches each token of a piece; the second is empty if all are whole.

    ``special`` are those of ``tokens`` that are no operands. Every character but white space is in a piece, and no
    part of a text is looked at more often than tokens are long: the time is linear.
    """
    number = "[0-9]+" + r"(?:\.[0-9]+)?" * allow_float
    is_number = re.compile(f"[+-]?{number}")
    begins_number = re.compile(r"[+-]?[0-9]+\." if allow_float else "(?!)")

    def guard(token: str) -> str:
        return _NO_DIGIT if token[-1] in "0123456789" or begins_number.fullmatch(token) else ""

    # what is neither a number nor the beginning of one is longer than any number that begins where it does; so it comes
    # first, then numbers, and last what may be the beginning of one: a sign
    others = [token for token in tokens if token not in ("+", "-") and not is_number.fullmatch(token)]
    pieces = [_longest(sorted(others), guard)] if others else []
    if attach_sign and (signed := _signed(tokens, number, digit_group)):
        ends = "|".join("".join(map(_literal, token)) for token in special)
        pieces.append(rf"(?:(?<![{_WORD})\]}}])|(?<={ends})){signed}")
    pieces += [number, f"[{_WORD}]+", r"[^\t-\r \x{85}\p{Z}]"]
    if not digit_group:
        return "|".join(pieces), ""
    whole, first = rf"\A(?![+-]?{number}\z).+\z", rf"\A[+-]?[0-9]{{1,{digit_group}}}(?={_groups(digit_group)}(?:\.|\z))"
    return "|".join(pieces), rf"{whole}|{first}|[0-9]{{1,{digit_group}}}|\."


def _signed(tokens: Sequence[str], number: str, digit_group: int) -> str:
    """A number with its sign, where ``tokens`` have its first token with the sign; empty where they have none."""
    most = f"{{1,{digit_group}}}" if digit_group else "+"
    wanted = re.compile(f"[+-][0-9]{most}" if digit_group else f"[+-]{number}")
    heads = sorted(token for token in tokens if wanted.fullmatch(token))
    if not heads:
        return ""
    if digit_group:
        return f"(?={_longest(heads)}{_groups(digit_group)}{_NO_DIGIT})[+-]{number}"
    more = r"(?!\.?[0-9])" if "." in number else _NO_DIGIT
    return _longest(heads, lambda token: _NO_DIGIT if "." in token else more)


def _groups(size: int) -> str:
    return rf"(?>(?:[0-9]{{{size}}})*)"


def _longest(tokens: Sequence[str], guard: Callable[[str], str] = lambda token: "", at: int = 0) -> str:
    """The longest of sorted ``tokens``, which are alike up to ``at``, that has after it what its ``guard`` admits."""
    ends: list[str] = []
    rests: dict[str, list[str]] = {}  # a range of numbers has few: those after 1, 2 and 3 are mostly alike
    for first, group in groupby(tokens, key=lambda token: token[at : at + 1]):
        if first:
            rests.setdefault(_longest(list(group), guard, at + 1), []).append(first)
        else:
            ends.append(guard(next(group)))
    branches = [_one_of(firsts) + rest for rest, firsts in rests.items()] + ends
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _one_of(characters: Sequence[str]) -> str:
    told = "".join(map(_literal, characters))
    return told if len(characters) == 1 else f"[{told}]"


def _literal(character: str) -> str:
    return character if character.isascii() and character.isalnum() else rf"\x{{{ord(character):x}}}"
