"""Validators of config classes."""

from collections.abc import Iterator

from arctic_training.config.sections.base import BaseConfig


def subclasses(base: type[BaseConfig]) -> Iterator[type[BaseConfig]]:
    for one in base.__subclasses__():
        yield one
        yield from subclasses(one)


def test_no_validator_takes_the_place_of_another() -> None:
    """pydantic runs one validator of a name: that of a subclass would switch off its base's without a word."""
    decorators = ("field_validators", "model_validators", "field_serializers", "model_serializers")
    hidden = [
        f"{one.__module__}.{one.__name__}.{name}"
        for one in set(subclasses(BaseConfig))
        if one.__module__.startswith("arctic_training.")
        for name in vars(one)
        for parent in one.__mro__[1:]
        if any(name in getattr(getattr(parent, "__pydantic_decorators__", None), kind, ()) for kind in decorators)
    ]
    assert not hidden, hidden
