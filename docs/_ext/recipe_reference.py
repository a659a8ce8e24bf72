"""Writes the recipe reference out of the config classes, so that it cannot differ from what is read."""

import functools
import json
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from arctic_training.config.get_config import DEFAULT_TRAINER
from arctic_training.config.recipe import describe
from arctic_training.config.sections.base import BaseConfig, ComponentConfig
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.registry import lookup, names

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTIONS = [
    ("model", "model_factory"),
    ("data", "data_factory"),
    ("data.sources", "data_source"),
    ("data.sources.task", "generator"),
    ("data.sources.transforms", "row_transform"),
    ("tokenizer", "tokenizer_factory"),
    ("optimizer", "optimizer_factory"),
    ("scheduler", "scheduler_factory"),
    ("checkpoint", "checkpoint_engine"),
    ("model.transforms", "model_transform"),
    ("callbacks", "callback"),
    ("evaluators", "evaluator"),
    ("evaluators.scorers", "scorer"),
    ("rewards", "reward"),
    ("trackers", "tracker"),
]

INTRODUCTION = """# Recipe reference

Every key that a recipe may have, generated from the classes that read it. The class that the `type` of a section names
reads the section; the first class that the trainer lists is the default. `arctic_training list` shows the classes, and
`arctic_training validate recipe.yaml --show` prints a recipe with every default and where each value comes from.

Each line gives the key, its type, its default and its meaning. A key without *required* may be left out. Numbers may
be written `1e-4`, `2k` (2,000), `4ki` (4,096), `1_000`, `10%` and `2^20`. `${key.path}` is replaced by the value of
another key, `${env:NAME}` by an environment variable, whose value is never shown, and `extends: base.yaml` starts from
another recipe. Words are those of YAML 1.2: `on`, `off`, `yes` and `no` are strings, `true` and `false` are booleans.

Recipes of ArcticTraining 0.8: see [which of them pass, and what is different](migration.md).
"""

descriptions = functools.cache(describe.descriptions)

PLAIN = {int: "int", float: "float", str: "str", bool: "bool", dict: "dict", list: "list", Path: "path", Any: "any"}


def shown_type(annotation: Any) -> str:
    """Returns a type as the field writes it: ``int``, ``path``, ``list of str``, ``"sum" | "none"``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown_type(arguments[0])
    if origin is typing.Literal:
        return " | ".join(f'"{argument}"' for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(shown_type(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"list of {len(arguments)} {shown_type(arguments[0])}"
    if origin is list:
        return f"list of {shown_type(arguments[0])}"
    if origin is dict:
        return "dict"
    if isinstance(annotation, type) and issubclass(annotation, BaseConfig):
        return "section"
    return PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def shown_default(field: Any) -> str:
    """Returns ``required``, ``optional`` or ``default ...``; nothing for a section, whose keys have their own."""
    if field.is_required():
        return ", *required*"
    value = default(field)
    if value is None:
        return ", optional"
    sections = isinstance(value, BaseConfig) or (value == {} and shown_type(field.annotation) == "section")
    return "" if sections or value is PydanticUndefined else f", default `{json.dumps(value, default=str)}`"


def default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not None else field.default


def table(config_type: type[BaseConfig], *, without: type[BaseConfig] | None = None, above: str = "") -> list[str]:
    """Returns a line for each key of a section, without those of its base class ``without``; ``above`` leads to it."""
    meanings = descriptions(config_type)
    known = set(without.model_fields) if without is not None else set()
    lines: list[str] = []
    for name, field in config_type.model_fields.items():
        if name in known and name != "type" and same(config_type, without, name):
            continue
        if name == "type" and config_type is not TrainerConfig:
            continue
        meaning = " ".join(meanings.get(name, "").replace("``", "`").split())
        shown = f"`{shown_type(field.annotation)}`{shown_default(field)}"
        if name == "type":
            shown = f'`str`, default `"{DEFAULT_TRAINER}"`'
        others = [other for other, key in {**config_type.synonyms, **config_type.renamed}.items() if key == name]
        meaning += "".join(f" Also read as `{other}`." for other in others if f"`{other}`" not in meaning)
        lines.append(f"- **`{above}{name}`** ({shown}): {meaning or name}")
        if isinstance(default(field), BaseConfig):  # a section that one class reads, whatever the recipe
            lines += table(type(default(field)), above=f"{above}{name}.")
    return lines if above else [*lines, ""]


def same(config_type: type[BaseConfig], base: type[BaseConfig] | None, name: str) -> bool:
    if base is None or name not in base.model_fields:
        return False
    ours, theirs = config_type.model_fields[name], base.model_fields[name]
    return bool(ours.default == theirs.default) and descriptions(config_type).get(name) == descriptions(base).get(name)


def subject(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("    ", "")


def package_classes(kind: str) -> dict[str, Any]:
    """Returns the classes of this package of ``kind`` by name, and none that other code has registered beside them."""
    classes = {name: lookup(kind, name) for name in names(kind)}
    return {name: cls for name, cls in classes.items() if cls.__module__.startswith("arctic_training.")}


def pages() -> str:
    lines = [INTRODUCTION, "## Top level", "", *table(TrainerConfig)]
    for name, cls in package_classes("trainer").items():
        lines += [f"### Trainer `{name}`", "", subject(cls), ""]
        lines += ["Classes that it accepts, the default first:", ""]
        for key, field in cls.config_type.model_fields.items():
            slot = next((m for m in field.metadata if isinstance(m, TrainerComponent)), None)
            if slot is not None:
                allowed = getattr(cls, slot.types)
                served = [allowed] if isinstance(allowed, type) else allowed
                lines += [f"- `{key}`: {', '.join(f'`{one.name}`' for one in served)}"]
        lines += ["", *table(cls.config_type, without=TrainerConfig)]
    for section, kind in SECTIONS:
        lines += [f"## `{section}`", ""]
        for name, cls in package_classes(kind).items():
            config_type = getattr(cls, "config_type", ComponentConfig)
            lines += [f"### {kind.replace('_', ' ').capitalize()} `{name}`", "", subject(cls), "", *table(config_type)]
    return "\n".join(lines) + "\n"


def write(app: "Sphinx") -> None:
    path = Path(app.srcdir) / "recipe.md"
    text = pages()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: "Sphinx") -> dict[str, Any]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
