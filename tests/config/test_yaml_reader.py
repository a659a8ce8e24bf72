"""YAML is read as its version 1.2 means it, with places; whatever the text, it is read or refused in a line."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arctic_training.config.recipe.node import Node, from_python, to_python
from arctic_training.config.recipe.yaml_reader import MAX_NODES, read_value, read_yaml
from arctic_training.config.recipe.yaml_writer import write_word, write_yaml
from arctic_training.errors.types import RecipeError


def value(text: str) -> Any:
    return to_python(read_value(text, "here"))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("+1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-12", -12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        # words of YAML 1.1 only
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("tRUE", "tRUE"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("017e", "017e"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("0o18", "0o18"),
        ("-0x1F", "-0x1F"),
        ("=", "="),
        ("nan", "nan"),
        ("inf", "inf"),
        # quoted, a word is a word
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("''", ""),
    ],
)
def test_what_a_word_means(text: str, means: Any) -> None:
    for read in (value(text), value(f"[{text or '~'}]")[0], value(f"{{free: {{deep: {text}}}}}")["free"]["deep"]):
        assert read == means
        assert type(read) is type(means)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(value(".nan"))


def test_a_number_of_many_digits_is_not_waited_for() -> None:
    digits = "1" * 5000
    assert value(digits) in (digits, math.inf, float(digits))


def test_every_value_and_key_knows_its_place() -> None:
    tree = read_yaml("a: 1\nb:\n  - x: 2\n  - c: {d: [3, 4]}\n", "r.yaml")

    def places(node: Node) -> Any:
        if isinstance(node.value, dict):
            return {key: places(one) for key, one in node.value.items()}
        return [places(one) for one in node.value] if isinstance(node.value, list) else str(node.origin)

    assert places(tree) == {
        "a": "r.yaml:1:4",
        "b": [{"x": "r.yaml:3:8"}, {"c": {"d": ["r.yaml:4:13", "r.yaml:4:16"]}}],
    }
    assert str(tree.value["b"].key) == "r.yaml:2:1"
    assert str(tree.value["b"].value[1].value["c"].value["d"].key) == "r.yaml:4:9"


def test_an_anchor_stands_for_a_value_and_merges() -> None:
    read = value("{a: &a {x: 1, y: 2}, b: *a, c: {<<: *a, y: 3}, d: {<<: [{x: 9}, *a]}, e: {'<<': 1}}")
    assert read["b"] == {"x": 1, "y": 2}
    assert read["c"] == {"x": 1, "y": 3}
    assert read["d"] == {"x": 9, "y": 2}
    assert read["e"] == {"<<": 1}


@pytest.mark.fault(21)
def test_aliases_up_to_the_limit_are_read() -> None:
    text = "a: &a [" + ",".join("1" * 99) + "]\nb: [" + ",".join(["*a"] * 90) + "]\n"
    assert len(to_python(read_yaml(text, "r"))["b"]) == 90
    with pytest.raises(RecipeError, match=f"more than {MAX_NODES:,} values"):
        read_yaml(text + "c: [" + ",".join(["*a"] * 10) + "]\n", "r")


def test_both_parsers_of_the_library_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x [1e-5, on, 'q', \"\\u00e9\"]\nb:\n  c: |\n    two\n    lines\n  d: *x\n"
    first = read_yaml(text, "r")
    monkeypatch.setattr("arctic_training.config.recipe.yaml_reader._LOADER", yaml.SafeLoader)
    assert read_yaml(text, "r") == first


_SPECIAL = [
    *"{}[]:,&*!|>'\"%@`#-? \n\t\\",
    "<<: ",
    "*a",
    "&a ",
    "- ",
    "a: ",
    "${",
    "---\n",
    "!!",
    "\x00",
    "\ufeff",
    "\x85",
]
_PIECES = st.lists(st.one_of(st.sampled_from(_SPECIAL), st.text(max_size=4)), max_size=40).map("".join)


@pytest.mark.fault(33)
@settings(max_examples=400, deadline=None)
@given(_PIECES)
@example("? a\n? b\n")
@example("&a a: *a")
@example("{&a a: 1, *a : 2}")
@example("a: &a\nb: *a")
@example("%TAG ! tag:x,2000:\n---\na: !b c")
@example("\ufeffa: 1")
@example("'")
def test_any_text_is_read_or_refused_in_lines(text: str) -> None:
    for read in (read_yaml, read_value):
        try:
            read(text, "r.yaml")
        except RecipeError as error:
            lines = error.problems
        else:
            continue
        assert lines
        assert all(line.startswith("r.yaml") and len(line.splitlines()) == 1 for line in lines)


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"), max_size=12),
    st.sampled_from(
        ["1e-5", "on", "0o17", "~", "", "1_000", ".inf", "null", "- a", "a: b", "#", " x ", "0x1", "12", "<<"]
    ),
)
_KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6) | st.sampled_from(
    ["<<", "on", "1"]
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=4))
def test_what_is_written_reads_back(recipe: dict[str, Any]) -> None:
    assert to_python(read_yaml(write_yaml(recipe), "r")) == recipe


@settings(max_examples=300, deadline=None)
@given(_SCALARS | st.lists(_SCALARS, max_size=4))
def test_what_is_written_on_a_line_reads_back(one: Any) -> None:
    line = write_word(one)
    assert len(line.splitlines()) <= 1
    assert value(line) == one


@given(_VALUES)
def test_a_value_grows_into_a_tree_and_back(one: Any) -> None:
    assert to_python(from_python(one)) == one
