"""Completes a config with the objects that a Python program passes to a trainer: models, a tokenizer, rows."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from arctic_training.config.checks.problems import Problem, problems_of
from arctic_training.config.recipe.location import located
from arctic_training.config.recipe.node import Node
from arctic_training.config.sections.component import listed
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.passed import LATER, PASSED, PASSED_MODULE, PASSED_TENSORS
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.fingerprint import of_tensors
from arctic_training.data.sources.passed import has_tokens
from arctic_training.engine.dtypes import DTYPES
from arctic_training.errors.types import RecipeError
from arctic_training.model.huggingface_factory import HFModelFactory
from arctic_training.registry import Registered, lookup
from arctic_training.tokenizer.factory import NoTokenizerFactory
from arctic_training.trainer.role import Role
from arctic_training.trainer.role_sections import INHERITED

_DATA = ("tokenizer", "train_dataset", "eval_dataset")
_TYPES = (PASSED, PASSED_MODULE, PASSED_TENSORS)

Sections = dict[str, object]
"""The keys of a recipe, or of one of its sections, that are stated."""


def pass_objects(config: TrainerConfig, trainer: type[Registered], objects: Mapping[str, object]) -> TrainerConfig:
    """Returns ``config`` with ``objects`` in place of what its sections lack; ``trainer`` is the class that they are
    passed to.

    ``train_dataset`` and ``eval_dataset`` are rows as the sources of its data factory take them, ``tokenizer`` is one
    of transformers, and any other object a module, by the name of its role. A role that stands for another one, such
    as a reference, gets a copy of its module. Raises `RecipeError` for an object that the recipe names too, and for
    what is neither passed nor named, TypeError for an object of another name.
    """
    if config.type not in [getattr(base, "name", "") for base in trainer.__mro__]:
        raise RecipeError(f"type: {config.type}; {trainer.__name__} takes a recipe of type {trainer.name}")
    known = [*(role.name for role in _roles(trainer)), *_DATA]
    if unknown := [name for name in objects if name not in known]:
        raise TypeError(f"{trainer.__name__}: no argument is named {unknown[0]!r}; there are {', '.join(known)}")
    objects = {name: one for name, one in objects.items() if one is not None}
    if not objects and not config.missing_objects:
        return config
    recipe: Sections = {name: getattr(config, name) for name in config.model_fields_set}
    problems: list[Problem] = []
    for role in _roles(trainer):
        if role.name in objects or role.name in recipe:
            stated = _stated_model(config, role, trainer)
            recipe[role.name] = _model_section(stated, objects.get(role.name), role.name, trainer, problems)
    if "tokenizer" in objects:
        recipe["tokenizer"] = _tokenizer_section(_stated(config, "tokenizer"), objects["tokenizer"], trainer, problems)
    recipe["data"] = _data_section(_stated(config, "data"), objects, trainer, problems)
    completed = _read(type(config), recipe, problems, config._tree)
    completed._recipe, completed._tree = config._recipe, config._tree
    _separate_modules(completed, trainer)
    return completed


def _stated(config: TrainerConfig, name: str) -> Sections:
    """Returns the keys that the section ``name`` states, without placeholders for objects."""
    section = getattr(config, name) if name in config.model_fields_set else None
    keys = {key: getattr(section, key) for key in section.model_fields_set} if section is not None else {}
    if keys.get("module") is not None:
        keys = {key: one for key, one in keys.items() if key not in ("type", "module")}
    keys = {key: one for key, one in keys.items() if one != LATER}
    for key in ("sources", "eval_sources"):
        if any(source.type in _TYPES for source in keys.get(key) or ()):
            del keys[key]
    return keys


def _stated_model(config: TrainerConfig, role: Role, trainer: type[Registered]) -> Sections:
    """Returns the keys that the section of ``role`` states, without those that it has from the role it defaults to."""
    default = _types(trainer, "model_factory")[0].name
    written = config._tree.step(role.name) if config._tree is not None else None
    inherited = INHERITED if role.default_to else ()
    return {
        key: one
        for key, one in _stated(config, role.name).items()
        if (key, one) != ("type", default) and not (key in inherited and (written is None or written.step(key) is None))
    }


def _model_section(
    stated: Sections, module: object, role: str, trainer: type[Registered], problems: list[Problem]
) -> Sections:
    if module is None:
        return stated
    of_transformers = issubclass(_types(trainer, "model_factory")[0], HFModelFactory)
    if not isinstance(module, nn.Module) or (of_transformers and not hasattr(module, "name_or_path")):
        expected = "model of transformers" if of_transformers else "torch module"
        problems.append(Problem((role,), f"expected a {expected}, not {type(module).__name__}"))
        return stated
    if "name_or_path" in stated:
        name = f"{stated['name_or_path']}, and a model is passed"
        problems.append(Problem((role, "name_or_path"), f"{name}; give one of them"))
    if kind := stated.pop("type", ""):
        problems.append(Problem((role, "type"), f"{kind} makes a model, and one is passed; remove it"))
    dtypes = [one.dtype for one in module.parameters() if one.is_floating_point()]
    own = next((name for name, dtype in DTYPES.items() if dtype in dtypes[:1]), None)
    section: Sections = {"dtype": own} | stated if own else stated
    if of_transformers:
        return {**section, "type": PASSED, "module": module, "name_or_path": str(module.name_or_path)}
    return {**section, "type": PASSED_MODULE, "module": module}


def _tokenizer_section(
    stated: Sections, tokenizer: object, trainer: type[Registered], problems: list[Problem]
) -> Sections:
    if _types(trainer, "tokenizer_factory") == [NoTokenizerFactory]:
        problems.append(Problem(("tokenizer",), f"{trainer.__name__} trains on no text; pass none"))
    elif not hasattr(tokenizer, "get_vocab"):
        problems.append(
            Problem(("tokenizer",), f"expected a tokenizer of transformers, not {type(tokenizer).__name__}")
        )
    return {**stated, "type": PASSED, "tokenizer": tokenizer}


def _data_section(
    stated: Sections, objects: Mapping[str, object], trainer: type[Registered], problems: list[Problem]
) -> Sections:
    factory = lookup("data_factory", str(stated.get("type") or _types(trainer, "data_factory")[0].name))
    source_type = str(getattr(factory, "passed_source", ""))
    for name, key in (("train_dataset", "sources"), ("eval_dataset", "eval_sources")):
        if (rows := objects.get(name)) is None:
            continue
        if not source_type:
            problems.append(Problem(("data", "type"), f"{factory.name} takes no rows from Python; remove {name}"))
        elif key in stated:
            problems.append(Problem(("data", key), f"they are stated, and {name} is passed; give one of them"))
        elif isinstance(rows, (str, bytes)) or not (hasattr(rows, "__iter__") or hasattr(rows, "__getitem__")):
            expected = "expected a list, a datasets.Dataset or a torch Dataset"
            problems.append(Problem(("data", key), f"{name} is a {type(rows).__name__}; {expected}"))
        elif source_type == PASSED and (why := _no_rows(rows, name)):
            problems.append(Problem(("data", key), f"{name} is a {type(rows).__name__}; {why}"))
        else:
            named = _several(rows) if name == "eval_dataset" else {}
            stated[key] = [_source(one, of, source_type) for of, one in (named or {name: rows}).items()]
    return stated


def _no_rows(rows: object, name: str) -> str:
    """Returns what to pass in the place of a table or a mapping, whose items are no rows; else nothing."""
    if hasattr(rows, "iloc"):
        return "pass datasets.Dataset.from_pandas(...)"
    if isinstance(rows, Mapping) and name == "train_dataset":
        return "pass one of its parts, such as its train; of columns, datasets.Dataset.from_dict(...)"
    return ""


def _several(rows: object) -> Mapping[str, object]:
    """Returns the evaluation sets of a mapping of them, by name; none for one set."""
    if not isinstance(rows, Mapping):
        return {}
    columns = all(isinstance(one, (torch.Tensor, np.ndarray)) for one in rows.values())
    return {} if columns else {str(name): one for name, one in rows.items()}


def _source(rows: object, name: str, source_type: str) -> Sections:
    tokens = {"process": False} if source_type == PASSED and has_tokens(rows) else {}
    return {"type": source_type, "name_or_path": name, "rows": rows, **tokens}


def _read(
    config_type: type[TrainerConfig], recipe: Sections, problems: list[Problem], tree: Node | None
) -> TrainerConfig:
    config: TrainerConfig | None = None
    try:
        config = config_type.model_validate(recipe)
    except ValidationError as error:
        known = [problem.path for problem in problems]
        more = problems_of(error, config_type)
        problems += [one for one in more if not any(one.path[: len(path)] == path for path in known)]
    if problems or config is None:
        raise RecipeError(located(problems, tree or Node({})))
    return config


def _separate_modules(config: TrainerConfig, trainer: type[Registered]) -> None:
    """Gives each role a module of its own, a copy where it stands for another role, and marks what no checkpoint
    holds: the weights of frozen ones."""
    taken: list[nn.Module] = []
    for role in _roles(trainer):
        section: ModelConfig | None = getattr(config, role.name)
        module: nn.Module | None = getattr(section, "module", None)
        if section is None or module is None:
            continue
        if any(module is other for other in taken):
            module, is_default = copy.deepcopy(module), role.name not in config.model_fields_set
            section = section.model_copy(update={"module": module})
            setattr(config, role.name, section)
            if is_default:
                config.model_fields_set.discard(role.name)
        taken.append(module)
        if role.frozen:
            setattr(section, "weights", of_tensors(module.state_dict()))  # noqa: B010


def _types(trainer: type[Registered], kind: str) -> list[type[Registered]]:
    """Returns the classes of a kind that the trainer lists."""
    return listed(getattr(trainer, f"{kind}_type"))


def _roles(trainer: type[Registered]) -> Sequence[Role]:
    roles: Sequence[Role] = getattr(trainer, "roles", ())
    return roles
