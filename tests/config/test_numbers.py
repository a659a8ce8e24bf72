"""Numbers are read as people write them."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.types import Duration, HumanFloat, HumanInt, number

WHOLE: TypeAdapter[Any] = TypeAdapter(HumanInt)
REAL: TypeAdapter[Any] = TypeAdapter(HumanFloat)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("2k", 2000),
        ("4ki", 4096),
        ("1.5k", 1500),
        ("1_000", 1000),
        ("2^20", 2**20),
        ("2**10", 1024),
        ("1e-4", 1e-4),
        ("10%", 0.1),
        ("0.5%", 0.005),
        ("500m", 500_000_000),
        ("1B", 10**9),
        ("1Gi", 2**30),
        ("-3", -3),
        (" 7 ", 7),
        ("2e3", 2000),
        (".5", 0.5),
        ("k", None),
        ("two", None),
        ("", None),
        ("1k2", None),
        ("2^99999999999", None),
        ("nan", None),
        ("1,000", None),
    ],
)
def test_what_a_number_means(text: str, means: float | None) -> None:
    assert number(text) == means
    assert type(number(text)) is type(means)


@given(st.integers(-(2**60), 2**60))
def test_a_whole_number_is_itself(value: int) -> None:
    assert number(str(value)) == value
    assert number(f"{value:_}") == value
    assert WHOLE.validate_python(str(value)) == WHOLE.validate_python(value) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_real_number_is_itself(value: float) -> None:
    assert number(repr(value)) == value
    assert REAL.validate_python(value) == value


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_none(text: str) -> None:
    assert number(text) is None or isinstance(number(text), (int, float))


@pytest.mark.parametrize("value", [True, False, 0.5, "0.5", "1.2345k", "two", None, [1]])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        WHOLE.validate_python(value)


_UNITS = st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("b", 10**9), ("Ki", 2**10), ("gi", 2**30)])
_DECIMALS = st.decimals(min_value=0, max_value=10**6, places=3)
_SIGNS = st.sampled_from([("", 1), ("+", 1), ("-", -1)])


@given(_DECIMALS, _UNITS, _SIGNS)
def test_a_number_with_a_unit_is_their_exact_product(digits: Decimal, unit: tuple[str, int], sign: Any) -> None:
    exact = sign[1] * Fraction(digits) * unit[1]
    assert number(f"{sign[0]}{digits}{unit[0]}") == float(exact)
    assert number(f"{sign[0]}{digits}%") == float(sign[1] * Fraction(digits) / 100)
    if exact.denominator == 1:
        assert WHOLE.validate_python(f"{sign[0]}{digits}{unit[0]}") == exact


@given(st.integers(0, 1000), st.integers(0, 60), _SIGNS, st.sampled_from(["^", "**", " ^ "]))
def test_a_power_has_the_sign_that_stands_before_it(base: int, exponent: int, sign: Any, between: str) -> None:
    assert number(f"{sign[0]}{base}{between}{exponent}") == sign[1] * base**exponent
    if base:
        assert number(f"{sign[0]}{base}{between}-{exponent}") == pytest.approx(sign[1] / base**exponent)
        assert number(f"{sign[0]}{base}.5{between}{exponent}") == pytest.approx(sign[1] * (base + 0.5) ** exponent)


@pytest.mark.parametrize("text", ["1k^2", "2^3k", "1ke3", "2^1e3", "--1", "- 1", "0^-1", "2^", "^2", "10.5^999", "-"])
def test_what_mixes_two_ways_of_writing_is_no_number(text: str) -> None:
    assert number(text) is None


class Numbers(BaseConfig):
    real: float = 0.0
    integer: int | None = None
    pair: tuple[float, float] = (0.0, 0.0)
    many: list[int] = []
    named: dict[str, float] = {}
    time: Duration | None = None
    word: int | str = 0
    bounded: float = Field(default=0.0, ge=0)


def test_every_number_of_a_section_is_read_as_people_write_it() -> None:
    read = Numbers(
        real="-10^6",  # type: ignore[arg-type]
        integer="2k",  # type: ignore[arg-type]
        pair=["10%", "-2^3"],  # type: ignore[arg-type]
        many=["1_000", 2],  # type: ignore[list-item]
        named={"1k": "1k"},  # type: ignore[dict-item]
        time="45m",  # type: ignore[arg-type]
        word="2k",
        bounded="10%",  # type: ignore[arg-type]
    )
    assert (read.real, read.integer, read.pair, read.many) == (-1e6, 2000, (0.1, -8.0), [1000, 2])
    assert (read.named, read.time, read.word, read.bounded) == ({"1k": 1000.0}, 2700.0, "2k", 0.1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1e3", 1e3), ("1_000", 1e3), ("2^3", 8), ("1k", 1e3), ("2.5", 2.5), ("1m", 60)]
)
def test_seconds_are_a_number_as_any(text: str, seconds: float) -> None:
    assert Numbers(time=text).time == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "section", [{"time": "10%"}, {"real": "two"}, {"whole": "0.5k1"}, {"many": ["1.5"]}, {"bounded": "-1%"}]
)
def test_a_section_refuses_what_is_no_number_of_its_kind(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Numbers(**section)
