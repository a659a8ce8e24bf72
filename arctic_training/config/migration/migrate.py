"""Turns a configuration of another trainer into a recipe, with a list of what could not be carried over."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from arctic_training.config.get_config import get_config
from arctic_training.config.migration.axolotl import migrate_axolotl
from arctic_training.config.migration.foreign import Foreign
from arctic_training.config.migration.llama_factory import migrate_llama_factory
from arctic_training.config.migration.torchtune import migrate_torchtune
from arctic_training.config.migration.trl import migrate_trl
from arctic_training.config.recipe.yaml_reader import MAX_CHARACTERS
from arctic_training.config.recipe.yaml_writer import write_yaml
from arctic_training.errors.types import InputError, RecipeError

FORMATS: dict[str, Callable[[Foreign, str], None]] = {
    "axolotl": migrate_axolotl,
    "llama_factory": migrate_llama_factory,
    "torchtune": migrate_torchtune,
    "trl": migrate_trl,
}
"""The trainers whose configurations are read."""


class Migrated(NamedTuple):
    """A recipe, and what is to be known of it."""

    format: str
    recipe: dict[str, object]
    notes: list[str]
    """What is carried over in another form, or stands for something."""
    left_out: list[str]
    """Keys that nothing in the recipe stands for, with their values."""
    problems: list[str]
    """What has to be mended before the recipe can be read."""

    def text(self, name: str) -> str:
        """Returns the recipe as YAML; comments at its beginning say what it was made of, ``name``, and the rest."""
        lines = [f"# Made of {name}, a configuration of {self.format}, by `arctic_training migrate`."]
        for title, several in self.lists().items():
            lines += [f"# {title}:", *(f"# - {line}" for line in several)]
        return "\n".join([*lines, write_yaml(self.recipe)])

    def lists(self) -> dict[str, list[str]]:
        """Returns the lists that are not empty, by their titles."""
        titles = {
            "Carried over in another form": self.notes,
            "Not carried over": self.left_out,
            "To be mended": self.problems,
        }
        return {title: several for title, several in titles.items() if several}


def migrate(file: Path, format: str = "", trainer: str = "") -> Migrated:
    """Returns the recipe of the configuration in ``file``, of ``format``, one of `FORMATS`, by default what its keys
    tell, and of ``trainer``, by default likewise.

    Raises `InputError` for a file that cannot be read, of no known format, or that trains nothing.
    """
    values = _read(file)
    format = format or detect_format(values)
    if not format:
        raise InputError(f"{file}: a configuration of none of {', '.join(FORMATS)} by its keys; give --from")
    foreign = Foreign(values, file.parent)
    FORMATS[format](foreign, trainer)
    recipe = {key: value for key, value in foreign.recipe.items() if value != {}}
    problems: list[str] = []
    try:
        problems = get_config(recipe).missing_objects
    except RecipeError as error:
        problems = error.problems
    return Migrated(format, recipe, list(dict.fromkeys(foreign.notes)), foreign.unread(), problems)


def detect_format(values: Mapping[str, object]) -> str:
    """Returns the format of a configuration, one of `FORMATS`; empty where its keys do not tell."""
    if any(isinstance(one, Mapping) and "_component_" in one for one in values.values()):
        return "torchtune"
    if "base_model" in values:
        return "axolotl"
    if "model_name_or_path" not in values:
        return ""
    return "llama_factory" if values.keys() & {"stage", "finetuning_type", "cutoff_len", "template"} else "trl"


def _read(file: Path) -> Mapping[str, object]:
    """Returns the mapping in ``file``, as those trainers read it: YAML 1.1."""
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"{file}: larger than 1 MB, too large for a configuration")
        values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(file)
        raise InputError(f"{place}: not YAML: {getattr(error, 'problem', None) or 'not UTF-8'}") from None
    if not isinstance(values, Mapping):
        raise InputError(f"{file}: expected a mapping of keys to values")
    return {str(key): value for key, value in values.items()}
