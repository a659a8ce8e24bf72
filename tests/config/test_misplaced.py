"""A key in the wrong section: the message names the sections that know it, for every key that a trainer reads."""

from collections.abc import Mapping
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup

RECIPE: dict[str, Any] = {"type": "sft", "model": {"name_or_path": "m"}, "data": {"sources": ["d.jsonl"]}}


def refusal(recipe: Mapping[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        get_config(recipe)
    return str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "home"),
    [
        ("model", "tiled_mlp_compute", "tiled_mlp_compute, at the top of the recipe"),
        ("data", "epochs", "epochs, at the top of the recipe"),
        ("optimizer", "epochs", "epochs, at the top of the recipe"),  # and not eps, whose name is like it
        ("", "pack_samples", "data.pack_samples"),
        ("", "peft_config", "model.peft_config"),
        ("", "betas", "optimizer.betas"),
        ("", "project", "wandb.project"),
        ("", "name_or_path", "model.name_or_path or tokenizer.name_or_path"),
        ("model", "seed", "seed or data.seed"),
        ("optimizer", "save_every_n_steps", "checkpoint.save_every_n_steps"),
    ],
)
def test_a_key_of_another_section_is_named_with_its_place(section: str, key: str, home: str) -> None:
    own = {key: 1} if not section else {section: {**RECIPE.get(section, {}), key: 1}}
    where = f"{section}.{key}" if section else key
    assert f"{where}: unknown; here this is {home}" in refusal({**RECIPE, **own})


def test_a_key_of_a_trainer_is_none_of_another_one() -> None:
    assert "here this is" not in refusal({**RECIPE, "num_generations": 2})
    assert "model.num_generations: unknown; here this is num_generations, at the top" in refusal(
        {**RECIPE, "type": "grpo", "model": {"name_or_path": "m", "num_generations": 2}}
    )


def test_every_key_at_the_top_is_known_inside_a_section() -> None:
    for key in lookup("trainer", "sft").config_type.model_fields.keys() - {"type", "callbacks", "scheduler"}:  # type: ignore[attr-defined]
        text = refusal({**RECIPE, "scheduler": {key: {}}})
        assert f"scheduler.{key}: unknown; here this is " in text and f"is {key}" in text
