"""``+key`` adds, ``~key`` removes: what changes, what stays, and where messages say that it is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training import get_config
from arctic_training.config.recipe.node import from_python, to_python
from arctic_training.config.recipe.overrides import add_path, apply_override, remove_path
from arctic_training.errors.types import RecipeError

SMALL: dict[str, Any] = {"model": {"name_or_path": "a"}, "data": {"sources": ["a/b"]}}


def changed(recipe: dict[str, Any], *words: str) -> Any:
    tree = from_python(recipe)
    for word in words:
        tree = apply_override(tree, word)
    return to_python(tree)


def test_a_plus_appends_to_lists_and_adds_what_is_not_there() -> None:
    recipe = SMALL | {"callbacks": ["ema"], "evaluators": {"type": "generate"}}
    words = ["+callbacks={type: ema, decay: 0.9}", "+evaluators=[generate, mine]", "+data.sources=c.jsonl", "+a.b=1"]
    assert changed(recipe, *words) == {
        "model": {"name_or_path": "a"},
        "data": {"sources": ["a/b", "c.jsonl"]},
        "callbacks": ["ema", {"type": "ema", "decay": 0.9}],
        "evaluators": [{"type": "generate"}, "generate", "mine"],
        "a": {"b": 1},
    }
    config = get_config(SMALL, ["+callbacks={type: ema}", "+callbacks={type: ema, decay: 0.9}"])
    assert [one.decay for one in config.callbacks] == [0.999, 0.9]  # type: ignore[attr-defined]


def test_a_tilde_removes_keys_and_elements() -> None:
    recipe = SMALL | {"callbacks": ["a", "b", "c"], "optimizer": {"learning_rate": 1}}
    assert changed(recipe, "~callbacks.1", "~optimizer.lr", "~data")["callbacks"] == ["a", "c"]
    assert changed(recipe, "~optimizer.lr")["optimizer"] == {}
    assert "data" not in changed(recipe, "~data")


@given(st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers())))
def test_what_is_added_and_removed_again_changes_nothing(recipe: dict[str, Any]) -> None:
    tree, path = from_python(recipe), ("d", "x")
    added = add_path(tree, path, from_python(1))
    assert to_python(added) == {**recipe, "d": {"x": 1}}
    assert to_python(remove_path(added, ("d",))) == recipe


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+model.name_or_path=b", "model.name_or_path: is there already; to replace it, leave out the +"),
        ("+model={type: mlp}", "model: is there already"),
        ("+model.name_or_path.x=b", "model.name_or_path.x: 'a' is neither a mapping nor a list, so it has no 'x'"),
        ("~modle", "modle: the recipe has no 'modle' to remove; did you mean 'model'? there are: model, data"),
        ("~data.sources.1", "data.sources.1: the recipe has no '1' to remove; there are: 0"),
        ("~model=1", "'~model=1': expected key.path=value, +key.path=value or ~key.path"),
        ("+seed", "'+seed': expected key.path=value, +key.path=value or ~key.path"),
        ("+=1", "expected key.path=value, +key.path=value or ~key.path"),
        ("~", "expected key.path=value, +key.path=value or ~key.path"),
    ],
)
def test_what_does_not_fit_is_refused(word: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        get_config(SMALL, [word])
    assert str(error.value).startswith("command line: ") and message in str(error.value)


def test_what_was_added_is_placed_on_the_command_line() -> None:
    with pytest.raises(RecipeError, match=r"^command line: callbacks\.1\.decay: 'x' should be a valid number"):
        get_config(SMALL | {"callbacks": ["ema"]}, ["+callbacks={type: ema, decay: x}"])
