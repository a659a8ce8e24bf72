"""Small configurations of each trainer, in the keys that public ones have, and the recipes that are made of them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config
from arctic_training.config.checks.foreign_keys import foreign_key
from arctic_training.config.migration.migrate import FORMATS, Migrated, migrate

FOLDER = Path(__file__).parent / "migrations"
CASES = [(name, case) for name in FORMATS for case in yaml.safe_load((FOLDER / f"{name}.yaml").read_text())]
OPAQUE = (
    "checkpointer ref_checkpointer ref_policy_checkpointer value_checkpointer reward_checkpointer teacher_checkpointer "
    "teacher_model reward_and_value_model kd_loss quantizer lr_scheduler lr_scheduler_kwargs fsdp_config deepspeed "
    "special_tokens message_property_mappings gradient_checkpointing_kwargs model_init_kwargs dataset_mixer "
    "type column_map"
)
"""Sections that are read as a whole, or that change nothing of what is trained."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def migrated(configuration: object) -> Migrated:
    text = configuration if isinstance(configuration, str) else yaml.safe_dump(configuration)
    Path("other.yaml").write_text(text)
    return migrate(Path("other.yaml"))


def value(recipe: Any, path: str) -> object:
    for key in path.split("."):
        recipe = recipe[key]
    return recipe


def sections(node: object, path: str = "") -> Iterator[str]:
    """Yields the paths of the mappings below ``node`` that are not opaque."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, one in pairs:
        if key in OPAQUE.split():
            continue
        if isinstance(one, dict):
            yield f"{path}{key}"
        yield from sections(one, f"{path}{key}.")


def test_there_are_ten_of_each_at_least() -> None:
    assert all(sum(name == one for one, _ in CASES) >= 10 for name in FORMATS)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case['name']}" for name, case in CASES])
def test_a_configuration_becomes_a_recipe(name: str, case: dict[str, Any]) -> None:
    one = migrated(case["configuration"])
    assert (one.format, one.problems) == (name, [])
    assert {path: value(one.recipe, path) for path in case["recipe"]} == case["recipe"]
    assert list(dict.fromkeys(note.partition(":")[0] for note in one.notes)) == case["notes"]
    assert one.left_out == case["left_out"]
    assert get_config(one.recipe).type == case["recipe"]["type"]


@pytest.mark.parametrize("name", FORMATS)
def test_no_key_is_left_out_that_has_a_counterpart(name: str) -> None:
    """The oracle is the table by which a recipe with such a key is answered."""
    left = [line.partition(":")[0] for one, case in CASES if one == name for line in case["left_out"]]
    assert {key: foreign_key(key) for key in left if foreign_key(key).startswith("here this is")} == {}


@pytest.mark.parametrize("name", FORMATS)
def test_a_key_that_nothing_stands_for_is_listed_wherever_it_stands(name: str) -> None:
    silent: list[str] = []
    for case in (case for one, case in CASES if one == name):
        configuration = yaml.safe_load(case["configuration"])
        for path in ["", *sections(configuration)]:
            changed = copy.deepcopy(configuration)
            section: Any = changed
            for key in path.split(".") if path else ():
                section = section[int(key) if isinstance(section, list) else key]
            section["unheard_of"] = 7
            one = migrated(changed)
            lists = [*one.left_out, *one.notes]
            if not any("unheard_of" in line for line in lists):
                silent.append(f"{case['name']}: {path}")
    assert silent == []
