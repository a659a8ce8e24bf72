"""What every registered class must keep to."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from arctic_training.callback.callback import Callback
from arctic_training.config.recipe.describe import descriptions
from arctic_training.config.sections.base import BaseConfig, ComponentConfig
from arctic_training.config.sections.component import TrainerComponent, listed
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.registry import kinds, lookup, names
from arctic_training.tokenizer.lexer_factory import NumberPolicy, SpecialTokens
from arctic_training.trainer.role import Role
from arctic_training.trainer.trainer import Trainer
from tests.contract.cases import CASES

BUILT_IN = [
    (kind, name)
    for kind in kinds()
    for name in names(kind)
    if lookup(kind, name).__module__.startswith("arctic_training.")
]
TRAINERS = [name for kind, name in BUILT_IN if kind == "trainer"]


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_a_class_is_whole(kind: str, name: str) -> None:
    cls = lookup(kind, name)
    assert cls.name == name and cls.kind == kind
    assert not inspect.isabstract(cls), f"{cls.__name__} leaves out {sorted(getattr(cls, '__abstractmethods__', ()))}"
    first = (cls.__doc__ or "").strip().partition("\n")[0]  # what `arctic_training list` prints
    assert first.endswith("."), f"{cls.__name__} does not say in its first line what it is"
    config_type = getattr(cls, "config_type", ComponentConfig)
    assert issubclass(config_type, BaseConfig)
    for field in getattr(config_type, "model_fields", {}):
        assert field.islower() and not field.startswith("_")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_says_who_may_serve_it(name: str) -> None:
    cls = lookup("trainer", name)
    assert issubclass(cls, Trainer)
    slots = {
        mark.types
        for field in cls.config_type.model_fields.values()
        for mark in field.metadata
        if isinstance(mark, TrainerComponent)
    }
    assert slots >= {
        "model_factory_type",
        "data_factory_type",
        "checkpoint_engine_type",
        "optimizer_factory_type",
        "scheduler_factory_type",
        "tokenizer_factory_type",
    }
    for slot in slots:
        for one in listed(getattr(cls, slot)):
            assert one.kind == slot.removesuffix("_type"), f"{name}.{slot} lists {one.__name__}, a {one.kind}"


def test_every_trainer_has_a_case_that_is_interrupted_and_resumed() -> None:
    assert set(CASES) == set(TRAINERS)


@pytest.mark.parametrize("name", [name for kind, name in BUILT_IN if kind == "callback"])
def test_a_callback_listens_only_to_events_that_there_are(name: str) -> None:
    cls = lookup("callback", name)
    assert issubclass(cls, Callback)
    heard = {a.partition("_")[2] for a in dir(cls) if a.partition("_")[0] in ("pre", "post")}
    assert heard, f"{name} listens to nothing"
    assert heard <= Trainer.events()


def test_the_events_of_a_trainer() -> None:
    assert Trainer.events() == {
        "init",
        "train",
        "epoch",
        "step",
        "loss",
        "backward",
        "after_update",
        "log",
        "evaluate",
        "val_metrics",
        "checkpoint",
        "load_checkpoint",
        "exception",
    }


def test_every_key_of_a_recipe_is_explained() -> None:
    plain = {"micro_batch_size", "gradient_accumulation_steps", "epochs", "seed"}  # their names say it all
    types = {TrainerConfig, *(getattr(lookup(kind, name), "config_type", TrainerConfig) for kind, name in BUILT_IN)}
    silent = [
        f"{config_type.__name__}.{field}"
        for config_type in types
        for field in config_type.model_fields.keys() - descriptions(config_type).keys() - plain
    ]
    assert not sorted(silent)


def test_every_key_of_a_recipe_is_read() -> None:
    sections = {TrainerConfig, *(getattr(lookup(kind, name), "config_type", TrainerConfig) for kind, name in BUILT_IN)}
    for section in list(sections):
        inside = [one for field in section.model_fields.values() for one in get_args(field.annotation)]
        inside += [field.annotation for field in section.model_fields.values()]
        sections |= {one for one in inside if inspect.isclass(one) and issubclass(one, BaseConfig)}
    keys = {name for section in sections for name in section.model_fields}
    roles: list[Role] = [role for name in TRAINERS for role in lookup("trainer", name).roles]  # type: ignore[attr-defined]
    read = {role.section(part) for role in roles for part in ("optimizer", "scheduler")}
    read |= {*SpecialTokens.model_fields, *NumberPolicy.model_fields}  # handed on all together
    for path in (Path(__file__).parents[2] / "arctic_training").rglob("*.py"):
        read |= read_in(ast.parse(path.read_text(encoding="utf-8")))
    assert keys <= read


def read_in(node: ast.AST) -> set[str]:
    """The names of what is read of objects, by a dot or by a text; a validator's key is checked, and not yet read."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "field_validator":
        return set()
    keys = set().union(*map(read_in, ast.iter_child_nodes(node)))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        keys.add(node.attr)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        keys.add(node.value)
    return keys


def test_the_table_of_built_in_classes_has_each_class_with_its_module() -> None:
    code = (
        "import importlib, pkgutil, arctic_training\n"
        "from arctic_training.builtin import BUILTIN\n"
        "from arctic_training import registry\n"
        "for module in pkgutil.walk_packages(arctic_training.__path__, 'arctic_training.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "classes = {(kind, name, cls.__module__.removeprefix('arctic_training.'))\n"
        "    for kind, named in registry._REGISTRY.items() for name, cls in named.items()}\n"
        "table = {(kind, name, module) for kind, named in BUILTIN.items() for name, module in named.items()}\n"
        "assert classes == table, classes ^ table\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recipe_imports_the_classes_that_it_names_and_no_other_trainer() -> None:
    code = (
        "import sys\n"
        "from arctic_training import get_config\n"
        "get_config({'type': 'vae'})\n"
        "assert 'arctic_training.objectives.vae' in sys.modules\n"
        "assert not {'arctic_training.objectives.dpo', 'arctic_training.tracker.wandb'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
