"""Values of torchtune's configurations: components, folders of checkpoints, and references to other values."""

import re
from collections.abc import Mapping

import yaml

from arctic_training.config.migration.foreign import Foreign
from arctic_training.config.migration.sections import mapping

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_DEPTH = 8
"""References of references that are followed."""


def component(value: object) -> str:
    """Returns the last part of the name of a component."""
    return str(mapping(value).get("_component_") or "").rpartition(".")[2]


def folder_of(foreign: Foreign, key: str) -> str:
    """Returns the folder of the model that the checkpointer ``key`` reads; empty where there is none."""
    return str(mapping(foreign.take(key)).get("checkpoint_dir") or "").rstrip("/")


def resolved(values: Mapping[str, object]) -> tuple[dict[str, object], set[str]]:
    """Returns values with those that ``${other.key}`` stands for, as OmegaConf reads them, and the keys at the top that
    are read so."""
    used: set[str] = set()

    def replacement(match: re.Match[str]) -> str:
        value: object = values
        for key in match[1].split("."):
            value = mapping(value).get(key)
        if value is None or isinstance(value, Mapping | list):
            return match[0]
        used.add(match[1])
        return str(value)

    def resolve(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): resolve(one) for key, one in value.items()}
        if isinstance(value, list):
            return [resolve(one) for one in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        for _ in range(_DEPTH):
            value = _REFERENCE.sub(replacement, value)
        return yaml.safe_load(value) if _NUMBER.fullmatch(value) else value

    return {key: resolve(value) for key, value in values.items()}, used
