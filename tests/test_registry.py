"""Classes become nameable by being defined."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.errors.types import RegistryError
from arctic_training.registry import Registered, lookup, names, numbered


class Fruit(Registered, kind="test_fruit"):
    pass


class Apple(Fruit):
    name = "apple"


class Middle(Fruit):
    pass


class Pear(Middle):
    name = "pear"


def test_stating_a_name_registers() -> None:
    assert names("test_fruit") == ["apple", "pear"]
    assert lookup("test_fruit", "pear") is Pear and Fruit.registered("apple") is Apple


@given(st.lists(st.text("ab_2#/", max_size=4)), st.sets(st.text("ab_2#/", max_size=4)))
def test_every_name_is_there_once(names: list[str], taken: set[str]) -> None:
    numbered_names = numbered(names, taken)
    assert len({*numbered_names}) == len(names) and not taken & {*numbered_names}
    for number, name in enumerate(names):  # the first of its name keeps it
        if name not in taken and name not in numbered_names[:number]:
            assert numbered_names[number] == name


def test_the_second_of_a_name_is_numbered() -> None:
    assert numbered(["a", "a", "a_2", "a"]) == ["a", "a#2", "a_2", "a#3"]
    assert numbered(["regex/eval", "regex#2/eval"], ["regex/eval", "regex#2/eval"]) == ["regex#3/eval", "regex#4/eval"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        RegistryError, match=r"no test fruit is named 'aple'; did you mean 'apple'\? there are: apple, pear"
    ):
        lookup("test_fruit", "aple")
    with pytest.raises(RegistryError, match="no kind of component is named 'fruits'"):
        lookup("fruits", "apple")


def test_a_taken_name_is_refused_and_both_classes_are_named() -> None:
    with pytest.raises(RegistryError, match=r"Thief is taken by tests\.test_registry\.Apple"):

        class Thief(Fruit):
            name = "apple"

    assert lookup("test_fruit", "apple") is Apple


def test_the_same_class_may_be_defined_again() -> None:
    classes = [type("Again", (Fruit,), {"name": "again", "__module__": "m"}) for _ in range(2)]
    assert lookup("test_fruit", "again") is classes[1]


def test_the_name_of_a_built_in_class_is_taken_before_its_module_is_imported() -> None:
    code = (
        "import sys\n"
        "from arctic_training import SFTTrainer\n"
        "assert 'arctic_training.objectives.vae' not in sys.modules\n"
        "class Mine(SFTTrainer):\n"
        "    name = 'vae'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "the trainer name 'vae' of __main__.Mine is taken by arctic_training.objectives.vae.VAETrainer" in ended.stderr
    )
