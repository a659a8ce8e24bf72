"""Every number of a built-in section has bounds, or a reason why any number is right."""

from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
import pytest
from pydantic import TypeAdapter, ValidationError

from arctic_training.config.sections.base import BaseConfig
from arctic_training.registry import kinds, lookup, names

CHECKED = {
    "a validator of the section checks it": {
        "ClassifierConfig.class_weights",
        "LoggerConfig.file_output_ranks",
        "LoggerConfig.print_output_ranks",
        "ImageConfig.size",
        "SourcedDataConfig.train_eval_split",
        "TextEncoderConfig.matryoshka_dims",
        "TimeLimitConfig.limit",
        "Vocabulary.range",
    },
    "any number is right": {
        "ConstantConfig.value",
        "DiffusionConfig.logit_mean",
        "EarlyStoppingConfig.divergence_threshold",
        "EarlyStoppingConfig.stopping_threshold",
        "ImageConfig.value_range",
        "RewardConfig.clip",
        "RewardConfig.threshold",
        "RewardConfig.weight",
        "SampleTensorsConfig.high",
        "SampleTensorsConfig.low",
        "TextEncoderConfig.matryoshka_weights",
    },
    "it comes from another key, which has bounds": {
        "ConsoleConfig.every",
        "KillSwitchConfig.seconds",
        "NanGuardConfig.limit",
    },
}


def sections() -> list[type[BaseConfig]]:
    """All built-in sections."""
    for kind in kinds():
        for name in names(kind):
            lookup(kind, name)

    def below(section: type[BaseConfig]) -> Iterator[type[BaseConfig]]:
        for one in section.__subclasses__():
            yield one
            yield from below(one)

    return [one for one in {*below(BaseConfig)} if one.__module__.startswith("arctic_training.")]


def unbounded(kind: Any, metadata: Iterable[Any] = ()) -> bool:
    """Whether a number within the annotation ``kind`` has no bound."""
    bounds = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = [part for one in arguments[1:] for part in getattr(one, "metadata", [one])]
        return unbounded(arguments[0], [*metadata, *inner])
    if origin in (Union, UnionType):
        return any(unbounded(one, metadata) for one in arguments)
    if origin is not None:
        return any(unbounded(one) for one in arguments)
    return kind in (int, float) and not any(isinstance(one, bounds) for one in metadata)


def test_every_number_has_bounds_or_a_reason() -> None:
    missing = {
        f"{next(base for base in reversed(section.__mro__) if name in getattr(base, '__annotations__', ())).__name__}"
        f".{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if unbounded(field.annotation, field.metadata)
    }
    assert missing == set().union(*CHECKED.values())


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("adamw", "betas", [0.9, 2]),
        ("lion", "betas", [-0.1, 0.9]),
        ("muon", "betas", [0.9, 1]),
        ("schedule_free", "betas", [0, 0.9]),
        ("adafactor", "beta1", 1),
        ("adafactor", "decay_rate", 0.8),
    ],
)
def test_what_an_optimizer_would_not_take_is_refused_by_its_section(kind: str, name: str, value: Any) -> None:
    section = lookup("optimizer_factory", kind).config_type
    TypeAdapter(section).validate_python({"type": kind})
    with pytest.raises(ValidationError, match="should be"):
        TypeAdapter(section).validate_python({"type": kind, name: value})
