"""Keys that another key decides whether they are read: refused where they would have no effect, at their own place."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from arctic_training import get_config
from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.errors.types import RecipeError


class Section(BaseConfig):
    kind: str = "plain"
    width: Annotated[float, OnlyWith("kind", "wide", "vast")] = 0.5
    """Of wide and vast ones."""
    names: Annotated[list[str], OnlyWith("kind", "wide")] = []
    depth: Annotated[int | None, OnlyWith("kind", "wide"), OnlyWith("is_deep", True)] = None
    is_deep: bool = False
    kinds: list[str] = []
    length: Annotated[int, OnlyWith("kinds", "long", "wide")] = 1


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"width": 0.5, "names": [], "depth": None},  # as a dump has them
        {"kind": "vast", "width": 2},
        {"kinds": ["plain", "long"], "length": 2},
        {"kind": "wide", "is_deep": True, "depth": 3, "names": ["a"]},
    ],
)
def test_keys_that_are_read_and_defaults_are_accepted(keys: dict[str, object]) -> None:
    section = Section.model_validate(keys)
    assert Section.model_validate(section.model_dump()) == section


@pytest.mark.parametrize(
    ("keys", "messages"),
    [
        ({"width": 2}, ["width: is for kind: wide or vast; remove it"]),
        ({"kind": "vast", "names": ["a"]}, ["names: is for kind: wide; remove it"]),
        ({"kind": "wide", "depth": 3}, ["depth: is for is_deep: true; remove it"]),
        ({"width": 2, "names": ["a"]}, ["width: is for", "names: is for"]),
        ({"kinds": ["plain"], "length": 2}, ["length: is for kinds: long or wide; remove it"]),
    ],
)
def test_keys_without_an_effect_are_refused(keys: dict[str, object], messages: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Section.model_validate(keys)
    assert all(message in str(caught.value) for message in messages)


def test_the_message_names_the_line_of_the_key(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "type: diffusion\nmodel: {type: time_mlp, sizes: [2, 4, 2]}\ndata: {sources: [rows.npy]}\nsigma_data: 1\n"
        "eta: 0.5\nsampler: ddpm\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        get_config(recipe)
    assert "recipe.yaml:4:13: sigma_data: is for weighting: edm; remove it" in str(caught.value)
    assert "recipe.yaml:5:6: eta: is for sampler: ddim; remove it" in str(caught.value)
