"""The registry of ArcticTraining 0.8: its functions find the classes of this package, its metaclass those of others."""

from abc import ABC, ABCMeta
from functools import partial
from typing import ClassVar

from arctic_training.compatibility import names
from arctic_training.errors.types import RegistryError
from arctic_training.registry import lookup, qualified_name, suggest

KINDS = {kind.title().replace("_", ""): kind for kind in names.KINDS}
"""The kinds of classes by the name of their base class there."""


class RegistryMeta(ABCMeta):
    """Registers the subclasses of a class ``Base(ABC, metaclass=RegistryMeta)`` by the ``name`` that they state.

    `get_registered_class("Base", name)` returns them. Each is checked by its ``_validate_subclass()`` if it has one.
    A class of this package that is given this metaclass registers itself, as without it.
    """

    _registry: ClassVar[dict[str, dict[str, type]]] = {}

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, object], **kwargs: object) -> None:
        """Raises `RegistryError` for a class without a name, or with that of another class."""
        super().__init__(name, bases, namespace)
        roots = [base for base in cls.__mro__[1:] if isinstance(base, RegistryMeta) and ABC in base.__bases__]
        if ABC in bases or not roots:
            return
        label = getattr(cls, "name", None)
        if not isinstance(label, str) or not label:
            raise RegistryError(f"{cls.__qualname__} has no name; state one")
        if check := getattr(cls, "_validate_subclass", None):
            check()
        if "name" not in namespace:
            return
        known = RegistryMeta._registry.setdefault(roots[-1].__name__, {})
        other = known.setdefault(label, cls)
        if qualified_name(other) != qualified_name(cls):
            raise RegistryError(
                f"the name {label!r} of {qualified_name(cls)} is taken by {qualified_name(other)}; choose another"
            )
        known[label] = cls


def get_registered_class(class_type: str, name: str) -> type:
    """Returns the class called ``name`` whose base class is called ``class_type``, such as ``ModelFactory``.

    Raises `RegistryError` where there is none.
    """
    if class_type in KINDS:
        return lookup(KINDS[class_type], name)
    if class_type not in RegistryMeta._registry:
        known = suggest(class_type, (*KINDS, *RegistryMeta._registry))
        raise RegistryError(f"no class with a registry is named {class_type!r}; {known}")
    classes = RegistryMeta._registry[class_type]
    if name not in classes:
        raise RegistryError(f"no {class_type} is named {name!r}; {suggest(name, classes)}")
    return classes[name]


get_registered_checkpoint_engine = partial(get_registered_class, "CheckpointEngine")
get_registered_data_factory = partial(get_registered_class, "DataFactory")
get_registered_data_source = partial(get_registered_class, "DataSource")
get_registered_model_factory = partial(get_registered_class, "ModelFactory")
get_registered_optimizer_factory = partial(get_registered_class, "OptimizerFactory")
get_registered_scheduler_factory = partial(get_registered_class, "SchedulerFactory")
get_registered_tokenizer_factory = partial(get_registered_class, "TokenizerFactory")
get_registered_trainer = partial(get_registered_class, "Trainer")
