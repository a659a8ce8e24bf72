"""The base of every section of a recipe."""

import warnings
from collections.abc import Mapping
from typing import ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator, model_validator

from arctic_training.config.checks.not_built import Keys
from arctic_training.config.checks.problems import Problem, Problems, shown
from arctic_training.config.recipe.node import LISTS, SYNONYMS
from arctic_training.config.sections.only_with import unread_keys
from arctic_training.config.sections.types import read_numbers


class BaseConfig(BaseModel):
    """Base of every section of a recipe. Reading one is pure: no network, no file, no process group, no logger."""

    synonyms: ClassVar[Mapping[str, str]] = {}
    """Other names of keys, and the keys that they mean."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of keys, and the keys that replace them: accepted with a warning for one version."""
    not_built: ClassVar[Keys] = {}
    """Keys of ArcticTraining 0.8 whose features are not built yet."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        populate_by_name=True,
        defer_build=True,  # a recipe has few of the many sections that there are
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for base in cls.__bases__:
            cls.synonyms = {**getattr(base, "synonyms", {}), **cls.synonyms}
            cls.renamed = {**getattr(base, "renamed", {}), **cls.renamed}
            cls.not_built = {**getattr(base, "not_built", {}), **cls.not_built}
        SYNONYMS.update({**cls.synonyms, **cls.renamed})
        LISTS.update(name for name, field in cls.model_fields.items() if get_origin(field.annotation) is list)

    @model_validator(mode="before")
    @classmethod
    def _resolve_old_keys(cls, section: object) -> object:
        if not isinstance(section, dict):
            return section
        names = {**cls.synonyms, **cls.renamed}
        for name in names.keys() & section.keys():
            if names[name] in section:
                raise ValueError(f"{name} and {names[name]} are the same; give one of them")
            if name in cls.renamed:
                text = f"{name} is now {names[name]}; the old name will be removed in the next version"
                warnings.warn(text, FutureWarning, stacklevel=2)
        return {names.get(key, key): one for key, one in section.items() if not cls._has_no_effect(key, one)}

    @classmethod
    def _has_no_effect(cls, key: str, value: object) -> bool:
        """Returns whether ``key`` is one of `not_built` and asks for nothing."""
        if key not in cls.not_built:
            return False
        neutral = cls.not_built[key][1]
        return bool(read_numbers(value, type(neutral)) == neutral)

    @field_validator("*", mode="before")
    @classmethod
    def _read_scalars(cls, value: object, info: ValidationInfo) -> object:
        # pydantic would accept true as 1, and yes, on and 1 as true
        field = cls.model_fields[info.field_name or ""]
        kind = field.annotation
        kinds = (kind, *get_args(kind))
        if value is True or value is False:
            if bool not in kinds and (int in kinds or float in kinds):
                raise ValueError(f"{shown(value)} is not a number")
        elif bool in kinds and str not in kinds and isinstance(value, (str, int, float)):
            choices = {"true", "false"}.union(*map(get_args, kinds))
            if value not in choices:
                raise ValueError(f"{shown(value)} should be true or false")
        reads_itself = any(isinstance(mark, BeforeValidator) for mark in field.metadata)
        return value if reads_itself else read_numbers(value, kind)

    @model_validator(mode="after")
    def _refuse_unread_keys(self) -> Self:
        if problems := list(unread_keys(self)):
            raise Problems(problems)
        return self

    def missing_paths(self) -> list[Problem]:
        """Returns the problems of the files and folders that this section names, without opening any."""
        return []


class ComponentConfig(BaseConfig):
    """The section of a recipe that one registered class reads."""

    libraries: ClassVar[Mapping[str, str]] = {}
    """Libraries that the class needs and this package does not: the name by which each is imported, and what pip
    installs. A run without one of them is refused before its data are prepared."""

    type: str = ""
    """Name of the registered class that reads this section (default: the first class that the trainer lists)."""


C = TypeVar("C", bound=ComponentConfig, covariant=True)
"""The config of a component. It is only read, so a component of one config is a component of its base."""
