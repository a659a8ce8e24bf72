"""Writes the recipe reference out of the config classes, so that it cannot differ from what is read."""

import types
import typing
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from arctic_training import builtin as _builtin  # noqa: F401  fills the shelves
from arctic_training.config.base import BaseConfig, ComponentConfig
from arctic_training.config.component import Slot
from arctic_training.config.describe import descriptions
from arctic_training.config.trainer import TrainerConfig
from arctic_training.registry import lookup, names

SECTIONS = [
    ("model", "model_factory"),
    ("data", "data_factory"),
    ("data.sources", "data_source"),
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

Every key that a recipe may have, generated from the classes that read it. A section is read by the class that its
`type` names; the trainer's first is the default. `arctic_training list` names the classes, and
`arctic_training validate recipe.yaml --show` prints a recipe with every default and where each value came from.

Numbers may be written `1e-4`, `2k` (2,000), `4ki` (4,096), `1_000`, `10%` and `2^20`. `${key.path}` stands for another
key's value, `${env:NAME}` for a variable's, which is never shown, and `extends: base.yaml` begins with another recipe.
Words are YAML 1.2's: `on`, `off`, `yes` and `no` are words, `true` and `false` are booleans.

## Recipes of ArcticTraining 0.8

They are read unchanged. A key whose feature is not built yet is refused by its name, unless it has the value that means
"off". What is different when a recipe says nothing:

| what | there | here |
|---|---|---|
| loss of a window | mean of the micro-batches' means | mean over all targets of the window and of all processes |
| last short window of an epoch | dropped or carried over | an update of its own |
| ZeRO stage | 2 | 1 on several processes, and in bf16 with accumulation; else 0 |
| `optimizer.type` | `fused_adam` | `adamw`, torch's fused one; `fused_adam` is there by name |
| `model.attn_implementation` | `sdpa` | `auto`: within each document, without a mask, where the model allows it |
| `model.disable_activation_checkpoint` | `false`: recomputed | kept, unless a GPU's memory would not hold them |
| `data.dl_num_workers` of text | 2 | 0: reading tokens from the cache takes microseconds |
| `data.div_length` | 256 | 256 for packed rows, 8 for padded ones |
| `checkpoint.output_dir` | required | `checkpoints/<type>` in the run folder |
| `train_log_metrics_path` | `train-log-metrics.jsonl` in the current folder | `metrics.jsonl` in the run folder |
| `kill_switch_path` | a file in the temporary folder | `kill_switch` in the run folder |
| a schedule's length | micro-batches in places | optimizer updates everywhere |
"""


def shown_type(annotation: Any) -> str:
    """A type as a person reads it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown_type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else shown_type(a) for a in arguments)
    if origin in (list, tuple, dict):
        inside = [shown_type(a) for a in arguments if a is not Ellipsis]
        return {list: "list of ", tuple: "", dict: "mapping of "}[origin] + ", ".join(inside)
    if isinstance(annotation, type) and issubclass(annotation, BaseConfig):
        return "section"
    plain = {int: "whole number", float: "number", str: "text", bool: "boolean", Path: "path", Any: "anything"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def shown_default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory is not None else field.default
    if value is PydanticUndefined or isinstance(value, BaseConfig):
        return ""
    return "nothing" if value is None or value == [] or value == {} or value == "" else f"`{value}`"


def table(config_type: type[BaseConfig], *, without: type[BaseConfig] | None = None, above: str = "") -> list[str]:
    """The keys of a section, but for those of its base class ``without``; ``above`` are the keys that lead to it."""
    told = descriptions(config_type)
    known = set(without.model_fields) if without is not None else set()
    lines: list[str] = []
    for name, field in config_type.model_fields.items():
        if name in known and name != "type" and same(config_type, without, name):
            continue
        if name == "type" and config_type is not TrainerConfig:
            continue
        default = shown_default(field)
        what = " ".join(told.get(name, "").replace("``", "`").split())
        shown = shown_type(field.annotation) + (f"; {default}" if default else "")
        lines += [f"`{above}{name}` ({shown})", f": {what or name}", ""]
        if not default and isinstance(field.annotation, type):  # a section that one class reads, whatever the recipe
            lines += table(field.annotation, above=f"{above}{name}.")
    return lines


def same(config_type: type[BaseConfig], base: type[BaseConfig] | None, name: str) -> bool:
    if base is None or name not in base.model_fields:
        return False
    ours, theirs = config_type.model_fields[name], base.model_fields[name]
    return bool(ours.default == theirs.default) and descriptions(config_type).get(name) == descriptions(base).get(name)


def subject(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("    ", "")


def pages() -> str:
    lines = [INTRODUCTION, "## Top level", "", *table(TrainerConfig)]
    for name in names("trainer"):
        cls: Any = lookup("trainer", name)
        lines += [f"### Trainer `{name}`", "", subject(cls), ""]
        for key, field in cls.config_type.model_fields.items():
            slot = next((m for m in field.metadata if isinstance(m, Slot)), None)
            if slot is not None:
                allowed = getattr(cls, slot.types)
                served = [allowed] if isinstance(allowed, type) else allowed
                lines += [f"- `{key}`: {', '.join(f'`{one.name}`' for one in served)}"]
        lines += ["", *table(cls.config_type, without=TrainerConfig)]
    for section, kind in SECTIONS:
        lines += [f"## `{section}`", ""]
        for name in names(kind):
            cls = lookup(kind, name)
            config_type = getattr(cls, "config_type", ComponentConfig)
            lines += [f"### {kind.replace('_', ' ').capitalize()} `{name}`", "", subject(cls), "", *table(config_type)]
    return "\n".join(lines) + "\n"


def write(app: Sphinx) -> None:
    path = Path(app.srcdir) / "recipe.md"
    text = pages()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
