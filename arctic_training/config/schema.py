"""Describes recipes by a JSON Schema (draft 2020-12), for editors and other programs."""

from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from arctic_training.config.get_config import DEFAULT_TRAINER
from arctic_training.config.recipe.describe import descriptions
from arctic_training.config.sections.base import BaseConfig, ComponentConfig
from arctic_training.config.sections.component import (
    COMPONENTS,
    AnyComponent,
    TrainerComponent,
    incomplete,
    listed,
    marks,
)
from arctic_training.registry import Registered, kinds, lookup, names

Schema = dict[str, Any]
_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{"}
"""A value that refers to another one: ``${key.path}``."""
_NUMBER: Schema = {
    "type": "string",
    "pattern": r"^[-+]?[0-9._]+([eE][-+]?[0-9]+)?([kKmMgGtT][iI]?|[bB%])?$|\^|\*\*|\$\{",
}
"""A number as people write it, such as ``2k``, ``10%`` and ``2^20``, or a reference."""
_ABOUT = ("description", "default", "deprecated")
"""Keywords that belong to a key and not to one of the forms of its value."""


def recipe_schema() -> Schema:
    """Returns the schema of recipes of every registered trainer, with the keys of every registered component.

    It accepts every recipe that is read, and refuses unknown keys, unknown names and values of another type. What is
    missing, and what contradicts another key, it does not know: a recipe may extend another one.
    """
    classes = [lookup(kind, name) for kind in kinds() for name in names(kind)]
    usable = [cls for cls in classes if hasattr(cls, "config_type") and not incomplete(cls)]
    configs = list(dict.fromkeys(map(config_of, usable)))
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(config, "validation") for config in configs]
    references, document = models_json_schema(models, ref_template="#/$defs/{model}")
    definitions: Schema = document["$defs"]
    keys = {one: references[one, "validation"]["$ref"].rpartition("/")[2] for one in configs}
    sections = {config: _section(config, definitions[key]) for config, key in keys.items()}
    definitions |= {keys[config]: section for config, section in sections.items()}
    definitions |= {"reference": _REFERENCE, "number": _NUMBER}
    for kind in kinds():
        if kind != "trainer":
            definitions[kind] = _choice({cls: keys[config_of(cls)] for cls in usable if cls.kind == kind})
    definitions |= _scored(sections)
    trainers = [cls for cls in usable if cls.kind == "trainer"]
    for cls in trainers:
        definitions[f"trainer.{cls.name}"] = _trainer(cls, sections[config_of(cls)], keys)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of arctic_training",
        "type": "object",
        "properties": {"type": {"enum": [cls.name for cls in trainers], "description": "Name of the trainer."}},
        "allOf": [
            *(_when(cls.name, {"$ref": f"#/$defs/trainer.{cls.name}"}) for cls in trainers),
            {
                "if": {"not": {"anyOf": [{"required": ["type"]}, {"required": ["extends"]}]}},
                "then": {"$ref": f"#/$defs/trainer.{DEFAULT_TRAINER}"},
            },
            {
                "if": {"required": ["extends"], "not": {"required": ["type"]}},
                "then": {"anyOf": [{"$ref": f"#/$defs/trainer.{cls.name}"} for cls in trainers]},
            },
        ],
        "$defs": definitions,
    }


def config_of(cls: type[Registered]) -> type[BaseConfig]:
    """Returns the class of the section that ``cls`` reads."""
    config: type[BaseConfig] = cls.config_type  # type: ignore[attr-defined]
    return config


def _when(name: str, then: Schema) -> Schema:
    return {"if": {"required": ["type"], "properties": {"type": {"const": name}}}, "then": then}


def _section(config: type[BaseConfig], schema: Schema) -> Schema:
    """Returns pydantic's ``schema`` of a section with what else it accepts: references, numbers as people write them,
    other names of keys, and keys of ArcticTraining 0.8 that ask for nothing."""
    meanings = descriptions(config)
    properties: Schema = {}
    for name, value in schema["properties"].items():
        about = {key: one for key, one in value.items() if key in _ABOUT}
        if name in meanings:
            about["description"] = " ".join(meanings[name].split())
        properties[name] = {**about, **_value({key: one for key, one in value.items() if key not in _ABOUT})}
        if kind := next((mark.kind for mark in marks(config.model_fields[name], AnyComponent)), ""):
            properties[name] = {**about, **_one_or_several({"$ref": f"#/$defs/{kind}"})}
    for other, name in {**config.synonyms, **config.renamed}.items():
        properties[other] = {**properties[name], "description": f"Another name of {name}."}
    for name, (feature, neutral) in config.not_built.items():
        properties[name] = {"const": neutral, "deprecated": True, "description": f"Not built: {feature}."}
    if issubclass(config, ComponentConfig):
        properties["type"] = {"type": "string"}
    properties["extends"] = {"type": "string", "description": "Another file, whose keys this section starts from."}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value(schema: Schema) -> Schema:
    """Returns the schema of a value, or of a value inside it, that a recipe may also write as a reference."""
    schema = {key: one for key, one in schema.items() if key != "title"}
    if schema.get("$ref") == f"#/$defs/{ComponentConfig.__name__}":  # read by a class of a kind that is not known here
        return {"type": ["object", "string"]}
    if COMPONENTS in schema:
        choice: Schema = {"anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in schema[COMPONENTS]]}
        return _one_or_several(choice) if schema.get("type") == "array" else choice
    if COMPONENTS in schema.get("items", {}):
        return _one_or_several(_value(schema["items"]))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = _value(schema[key])
    if "prefixItems" in schema:
        schema["prefixItems"] = [_value(one) for one in schema["prefixItems"]]
    if "anyOf" in schema:
        return {**schema, "anyOf": [_value(one) for one in schema["anyOf"]]}
    if schema.get("type") in ("integer", "number"):
        return {"anyOf": [schema, {"$ref": "#/$defs/number"}]}
    is_text = schema.get("type") == "string" and not schema.keys() & {"enum", "const", "pattern"}
    accepts_references = is_text or not schema or schema.get("type") == "null"
    return schema if accepts_references else {"anyOf": [schema, {"$ref": "#/$defs/reference"}]}


def _one_or_several(section: Schema) -> Schema:
    return {"anyOf": [section, {"type": "array", "items": section}, {"type": "null"}]}


def _choice(keys: Mapping[type[Registered], str]) -> Schema:
    """Returns the schema of a name, or of a section that one of several classes reads, by its ``type``; ``keys`` has
    the definition of each."""
    by_name = {name: key for cls, key in keys.items() for name in _names(cls)}
    any_of = [{"$ref": f"#/$defs/{key}"} for key in dict.fromkeys(by_name.values())]
    cases = [_when(name, {"$ref": f"#/$defs/{key}"}) for name, key in by_name.items()]
    section = {
        "type": "object",
        "properties": {"type": {"enum": list(by_name)}},
        **({"allOf": cases} if cases else {}),
        **({"if": {"not": {"required": ["type"]}}, "then": {"anyOf": any_of}} if any_of else {}),
    }
    return {"anyOf": [section, {"type": "string"}]}


def _scored(sections: Mapping[type[BaseConfig], Schema]) -> Schema:
    """Returns the definitions of scorers as rewards: a section has the keys of the scorer and those of a reward."""
    reward = sections[config_of(lookup("reward", "score"))]["properties"]
    of_reward = {key: one for key, one in reward.items() if key != "scorer"}
    scorers = [lookup("scorer", name) for name in names("scorer")]
    keys = {cls: f"scored.{cls.name}" for cls in scorers}
    definitions: Schema = {"scored": _choice(keys)}
    for cls in scorers:
        section = sections[config_of(cls)]
        definitions[keys[cls]] = {**section, "properties": {**of_reward, **section["properties"]}}
    return definitions


def _trainer(cls: type[Registered], section: Schema, keys: Mapping[type[BaseConfig], str]) -> Schema:
    """Returns the schema of recipes of one trainer: its section, with the classes that it lists."""
    config = config_of(cls)
    properties: Schema = {**section["properties"], "type": {"const": cls.name}}
    restricted: Schema = {}
    for key, field in config.model_fields.items():
        for mark in marks(field, TrainerComponent):
            allowed = listed(getattr(cls, mark.types))
            about = {word: one for word, one in properties[key].items() if word in _ABOUT}
            choice = {"$ref": f"#/$defs/{allowed[0].kind}"}
            several = get_origin(field.annotation) is list
            forms = _one_or_several(choice) if several else {"anyOf": [choice, {"type": "null"}]}
            properties[key] = {**about, **forms}
            of_type = {
                "properties": {"type": {"enum": [name for one in allowed for name in _names(one)]}},
                "if": {"not": {"required": ["type"]}},
                "then": {"$ref": f"#/$defs/{keys[config_of(allowed[0])]}"},
            }
            restricted[key] = {**of_type, "items": of_type}
    skips = {"required": ["skip_validation"], "properties": {"skip_validation": {"const": True}}}
    return {**section, "properties": properties, "if": {"not": skips}, "then": {"properties": restricted}}


def _names(cls: type[Registered]) -> list[str]:
    return [cls.name, *getattr(cls, "aliases", ())]
