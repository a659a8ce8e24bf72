"""The JSON Schema of recipes accepts every recipe of the repository and refuses what is not read."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from arctic_training import get_config
from arctic_training.cli.main import main
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.yaml_reader import read_yaml
from arctic_training.config.schema import recipe_schema
from tests.contract import cases
from tests.own_classes import only_built_in
from tests.processes import ROOT
from tests.test_recipes import RECIPES, SHOWN


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """Of a schema that has the classes of the projects too."""
    with pytest.MonkeyPatch.context() as patch, only_built_in(ROOT / "projects"):
        patch.chdir(ROOT)
        for path in RECIPES:
            get_config(path)
        schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def refusal(validator: Draft202012Validator, recipe: Any) -> str:
    error = best_match(validator.iter_errors(recipe))
    return "" if error is None else f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def test_every_recipe_of_the_repository_is_accepted(validator: Draft202012Validator) -> None:
    recipes = {str(path): to_python(read_yaml(path.read_text("utf-8"), str(path))) for path in RECIPES}
    recipes |= {str(one.id): one.values[0] for one in SHOWN if {"model", "data"} <= one.values[0].keys()}  # type: ignore
    refused = {name: text for name, recipe in recipes.items() if (text := refusal(validator, recipe))}
    assert not refused


@pytest.mark.parametrize("trainer", cases.CASES)
def test_a_wrong_key_name_or_value_is_refused(
    trainer: str, validator: Draft202012Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the top and in every section, in recipes of every trainer."""
    monkeypatch.setattr(cases.tiny, "save_model", lambda folder, **_: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(cases.tiny, "save_encoder_decoder", lambda folder, **_: folder.mkdir(exist_ok=True))
    recipe = cases.recipe(trainer, tmp_path)
    assert refusal(validator, recipe) == ""
    sections = [key for key, value in recipe.items() if isinstance(value, dict) and key != "deepspeed"]
    assert {"model", "data"} <= set(sections)
    for change in ({"optimiser": {}}, {"epochs": "many"}, {"micro_batch_size": [1]}, {"type": "sftt"}):
        assert refusal(validator, recipe | change), change
    for key in sections:
        wrong = copy.deepcopy(recipe)
        wrong[key]["nonsense"] = 1
        assert refusal(validator, wrong), key
        if key != "logger":
            assert refusal(validator, recipe | {key: {**recipe[key], "type": "nonsense"}}), key


@pytest.mark.parametrize(
    "more",
    [
        {"train_iters": "2k", "optimizer": {"lr": "1e-4"}, "time_limit": "3h50m", "data": {"sources": "a.jsonl"}},
        {"train_iters": "${epochs}", "optimizer": "${scheduler}", "seed": "2^10"},
        {"model": {"name_or_path": "a", "dtype": "bfloat16"}, "logger": {"level": "info", "print_output_ranks": 0}},
        {"callbacks": "ema", "evaluators": {"type": "generate", "scorers": ["exact_match", {"type": "numeric"}]}},
        {"checkpoint": {"type": "deepspeed"}, "arctic_moe": False, "skip_validation": True, "tokenizer": None},
    ],
)
def test_other_ways_to_write_a_value_are_accepted(validator: Draft202012Validator, more: dict[str, Any]) -> None:
    assert refusal(validator, {"model": {"name_or_path": "a"}, "data": {"sources": ["a"]}} | more) == ""


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"model": {"type": "mlp", "sizes": [1, 2]}}, "model.type"),
        ({"callbacks": [{"type": "ema", "decayy": 0.9}]}, "callbacks"),
        ({"scheduler": {"name": "cosine", "warmup": 3}}, "scheduler"),
        ({"type": "grpo", "rewards": [{"type": "numeric", "wait": 2}]}, "rewards"),
    ],
)
def test_what_does_not_fit_the_trainer_is_refused(
    validator: Draft202012Validator, more: dict[str, Any], place: str
) -> None:
    good: dict[str, Any] = {"model": {"name_or_path": "a"}, "data": {"sources": ["a"]}}
    assert refusal(validator, good) == ""
    assert refusal(validator, good | more).startswith(place)


def test_the_command_writes_it_with_own_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from arctic_training import SFTTrainer\n\nclass Mine(SFTTrainer):\n    name = 'of_the_schema'\n"
    Path("train.py").write_text(code)
    assert main(["schema", "--code", "train.py", "-o", "recipe.schema.json"]) == 0
    schema = json.loads(Path("recipe.schema.json").read_text())
    assert {"of_the_schema", "sft", "gan"} <= set(schema["properties"]["type"]["enum"])
    described = schema["$defs"]["trainer.dpo"]["properties"]["beta"]
    assert described["default"] == 0.1 and described["description"].startswith("How strongly the policy")
