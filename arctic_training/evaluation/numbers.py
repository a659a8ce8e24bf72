"""Reads the numbers of a text: signs, groups of digits, exponents and fractions, in plain text and in LaTeX."""

import math
import re

_NUM = r"(?=\.?\d)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"[-+]?{_NUM}")

_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-"})
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
"""Separators of groups of digits other than a comma: ``1{,}000``, ``1\\,000``, ``10,\\!000`` and narrow spaces."""
_IN_WORD = re.compile(r"(?<=\w)(?<!\d[eE])-")
_DATE = re.compile(r"\b\d{4}-\d\d?-\d\d?\b")
_APART = re.compile(r"-\s*\\?[$€£¥]\s*(?=[\d.])|(?<==)\s*-\s+(?=[\d.\\])")
"""A sign before a currency, or apart from its number in an equation."""
_FRACTION = re.compile(rf"(?<!\d)\\[dt]?frac\s*(?:\{{\s*([-+]?{_NUM})\s*\}}\s*\{{\s*({_NUM})\s*\}}|(\d)\s*(\d))")
_VALUE = re.compile(
    rf"""
    (?P<within> [\^√/]\{{? | (?<=[A-Za-z0-9}}])_\{{? | [\]}}]\{{ | (?<=\d)(?: [:,] | (?=\.) | [ ](?=0\d\d\b) ) )?
    (?P<value> [-+]? {_NUM} (?: \s*/\s* {_NUM} )? )
    (?P<goes_on> \}}? [\^√π⁰¹²³⁴-⁹½¼¾⅓⅔] | \s*\\(?:pi|sqrt)\b | /[\w\\({{] | [:.,]\d | [ ]0\d\d\b )?
    """,
    re.VERBOSE,
)
"""A number or fraction; what is around it where it is a part of a power, a root, a time or a date."""


def parse_numbers(text: str) -> list[float]:
    """Returns the numbers in ``text``: ``-3``, ``1,024``, ``.5``, ``1e-4``. A hyphen inside a word is not a sign."""
    matches = (match[0].replace(",", "") for match in _NUMBER.finditer(_IN_WORD.sub(" ", text)))
    return [value for value in map(float, filter(None, matches)) if math.isfinite(value)]


def parse_values(text: str) -> list[float]:
    """Returns the values of the numbers in ``text``, fractions as one: ``-1/2``, ``\\frac{1}{2}``, ``1{,}000``.

    NaN stands for a number that is a part of something else: of a power, a root, a mixed number, a time, a date, or of
    digits with spaces or a decimal comma between them.
    """
    text = _IN_WORD.sub(" ", _DATE.sub("√0", _GROUPS.sub(",", text.translate(_MINUS))))
    text = _FRACTION.sub(lambda match: f"{match[1] or match[3]}/{match[2] or match[4]}", _APART.sub("-", text))
    text = re.sub(r"\\(?:sqrt|[dt]?frac)(?![a-z])", "√", text)
    values = []
    at = 0
    while match := _VALUE.search(text, at):
        at = match.end("value")
        is_part = match["within"] is not None or match["goes_on"] is not None
        values.append(math.nan if is_part else _value(match["value"]))
    return values


def _value(text: str) -> float:
    """Returns the value of a number or fraction; NaN where it has none."""
    above, _, below = text.replace(",", "").partition("/")
    value, divisor = float(above), float(below or 1)
    if not divisor or not math.isfinite(value) or not math.isfinite(divisor):
        return math.nan
    try:
        return int(above) / int(below or 1)  # rounded once, also where a float has not all digits of the two
    except ValueError:
        return value / divisor
