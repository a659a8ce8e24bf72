"""Other names of keys: synonyms are read silently, former names with a warning."""

import pytest
from pydantic import ValidationError

from arctic_training.config.checks.problems import problems_of
from arctic_training.config.recipe.location import located
from arctic_training.config.recipe.node import from_python, merge, to_python
from arctic_training.config.recipe.yaml_reader import read_yaml
from arctic_training.config.sections.base import BaseConfig


class Parent(BaseConfig):
    synonyms = {"size_short": "test_size"}
    renamed = {"test_size_of_old": "test_size"}
    test_size: int = 0


class Child(Parent):
    renamed = {"former_count": "test_count"}
    test_count: int = 0


def test_a_former_name_is_read_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="^former_count is now test_count; the old name will be removed"):
        assert Child.model_validate({"former_count": 3}).test_count == 3
    with pytest.warns(FutureWarning, match="test_size_of_old"):
        assert Child.model_validate({"test_size_of_old": 3}).test_size == 3


@pytest.mark.filterwarnings("error")
def test_a_synonym_is_read_silently() -> None:
    assert Child.model_validate({"size_short": 3}).test_size == 3
    assert Child(test_size=4).test_size == 4


def test_two_names_of_one_key_are_refused() -> None:
    with pytest.raises(ValidationError, match="former_count and test_count are the same; give one of them"):
        Child.model_validate({"former_count": 3, "test_count": 3})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_error_names_the_key_as_the_recipe_has_it() -> None:
    tree = read_yaml("former_count: x\n", "recipe.yaml")
    with pytest.raises(ValidationError) as refused:
        Child.model_validate(to_python(tree))
    (line,) = located(problems_of(refused.value, Child), tree)
    assert line.startswith("recipe.yaml:1:15: former_count: 'x'")


def test_a_new_name_takes_the_place_of_the_former_one_in_a_base() -> None:
    base, over = from_python({"former_count": 1, "other": 2}), from_python({"test_count": 3})
    assert to_python(merge(base, over)) == {"other": 2, "test_count": 3}
    assert to_python(merge(over, base)) == {"former_count": 1, "other": 2}
