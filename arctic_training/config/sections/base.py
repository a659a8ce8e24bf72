"""What all recipe sections share."""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator, model_validator

from arctic_training.config.checks.problems import Problem
from arctic_training.config.recipe.node import SYNONYMS
from arctic_training.config.sections.numbers import read_numbers


class BaseConfig(BaseModel):
    """Base of every section of a recipe. Reading one is pure: no network, no file, no process group, no logger."""

    synonyms: ClassVar[Mapping[str, str]] = {}
    """Other names of keys, and the keys that they mean."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of keys, and the keys that replace them: accepted with a warning for one version."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        populate_by_name=True,
        defer_build=True,  # of the many sections that there are, a recipe has a few
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for base in cls.__bases__:
            cls.synonyms = {**getattr(base, "synonyms", {}), **cls.synonyms}
            cls.renamed = {**getattr(base, "renamed", {}), **cls.renamed}
        SYNONYMS.update({**cls.synonyms, **cls.renamed})

    @model_validator(mode="before")
    @classmethod
    def _rename_keys(cls, section: Any) -> Any:
        names = {**cls.synonyms, **cls.renamed}
        if not isinstance(section, dict) or names.keys().isdisjoint(section):
            return section
        for name in names.keys() & section.keys():
            if names[name] in section:
                raise ValueError(f"{name} and {names[name]} are the same; give one of them")
            if name in cls.renamed:
                told = f"{name} is now {names[name]}; the old name will be removed in the next version"
                warnings.warn(told, FutureWarning, stacklevel=2)
        return {names.get(key, key): value for key, value in section.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _words_are_not_truths(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take true for 1, and yes, on and 1 for true
        field = cls.model_fields[info.field_name or ""]
        kind = field.annotation
        kinds = (kind, *get_args(kind))
        if value is True or value is False:
            if bool not in kinds and (int in kinds or float in kinds):
                raise ValueError(f"{str(value).lower()} is no number")
        elif bool in kinds and str not in kinds and isinstance(value, (str, int, float)):
            words = {"true", "false"}.union(*map(get_args, kinds))
            if value not in words:
                raise ValueError(f"{value!r}: write true or false")
        own = any(isinstance(mark, BeforeValidator) for mark in field.metadata)
        return value if own else read_numbers(value, kind)

    def missing_paths(self) -> list[Problem]:
        """What this section names on disk and is not there, or is of another kind. It looks only."""
        return []


class ComponentConfig(BaseConfig):
    """The section of a recipe that one registered class reads."""

    type: str = ""
    """The registered class that reads this section; the trainer's first when left out."""
