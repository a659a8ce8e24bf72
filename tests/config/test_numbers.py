"""Numbers are read as people write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from arctic_training.config.numbers import HumanFloat, HumanInt, number

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
