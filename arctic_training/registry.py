"""The registry of the classes that a recipe can name. A class is registered by being defined.

The module of a built-in class is imported when the class is first looked up.
"""

import difflib
import inspect
import sys
from collections.abc import Iterable
from importlib import import_module
from types import new_class
from typing import ClassVar, Self, cast, get_args

from arctic_training.builtin import BUILTIN
from arctic_training.compatibility.names import former_name
from arctic_training.errors.types import RegistryError

_REGISTRY: dict[str, dict[str, type["Registered"]]] = {}
"""The classes of each kind that were defined in this process, by their names."""


class Registered:
    """Base of every class that a recipe can name.

    A direct child declares a kind with ``kind=``. A descendant that states its own ``name`` is registered under that
    kind; one that does not is an intermediate class and is not registered.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _choose_annotated(cls)
        if kind is not None:
            cls.kind = kind
            _REGISTRY.setdefault(kind, {})
        elif "name" in cls.__dict__:
            _register(cls)

    @classmethod
    def registered(cls, name: str) -> type[Self]:
        """Returns the class of this kind with that name. Raises `RegistryError` when there is none."""
        return cast(type[Self], lookup(cls.kind, name))


def lookup(kind: str, name: str) -> type[Registered]:
    """Returns the class of ``kind`` called ``name``. Raises `RegistryError`, which suggests the nearest name."""
    if kind not in kinds():
        raise RegistryError(f"no kind of component is named {kind!r}; {suggest(kind, kinds())}")
    if (cls := _find(kind, name)) is None:
        raise RegistryError(f"no {words(kind)} is named {name!r}; {suggest(name, names(kind))}")
    return cls


def _find(kind: str, name: str) -> type[Registered] | None:
    """Returns the class of ``kind`` called ``name``, None if there is none. Imports its module if it is built in."""
    classes = _REGISTRY.get(kind, {})
    if name not in classes and (module := BUILTIN.get(kind, {}).get(name)):
        import_module(f"arctic_training.{module}")
        classes = _REGISTRY[kind]
    return classes.get(name)


def words(kind: str) -> str:
    """Returns a kind as a message names it."""
    return kind.replace("_", " ")


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns, for a user who misspelt ``word``, what he may have meant, then all that is ``known``."""
    known = list(known)
    return " ".join(filter(None, [did_you_mean(word, known), f"there are: {', '.join(known) or 'none'}"]))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``did you mean 'x'?`` with the one of ``known`` that is nearest to ``word``; empty when none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def names(kind: str) -> list[str]:
    """Returns the names of the built-in and the registered classes of ``kind``, sorted."""
    return sorted({*BUILTIN.get(kind, ()), *_REGISTRY.get(kind, ())})


def kinds() -> list[str]:
    """Returns every kind of component, sorted."""
    return sorted({*BUILTIN, *_REGISTRY})


def numbered(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Returns the names, each once and none that is ``taken``: the second ``regex`` is ``regex#2``.

    Of a path, such as ``regex/eval``, the part before the last slash is numbered.
    """
    used, unique_names = set(taken), list[str]()
    for name in names:
        number, unique = 1, name
        while unique in used:
            number += 1
            head, slash, tail = name.rpartition("/")
            base = f"{(head or tail).partition('#')[0]}#{number}"
            unique = f"{base}/{tail}" if slash and head else base
        used.add(unique)
        unique_names.append(unique)
    return unique_names


def stated(cls: type, name: str, *methods: str) -> object:
    """Returns the attribute ``name`` of the nearest class that states it, of ``cls`` and its bases; None where a nearer
    one has one of ``methods`` of its own, so that what its base states need not hold for it."""
    nearest = next((one for one in cls.__mro__ if {name, *methods} & vars(one).keys()), object)
    return vars(nearest).get(name)


def qualified_name(cls: type) -> str:
    """Returns the name of a class with its module, or with its file where the user's own code defines it."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) if hasattr(module, "__source__") else None
    return f"{cls.__qualname__} in {file}" if file else f"{cls.__module__}.{cls.__qualname__}"


def annotations(cls: type) -> dict[str, object]:
    """Returns the annotations of ``cls`` itself, without those whose names only a type checker knows."""
    known = {**vars(sys.modules.get(cls.__module__, object)), **vars(cls)}
    evaluated: dict[str, object] = {}
    for name, annotation in inspect.get_annotations(cls).items():
        try:
            evaluated[name] = eval(annotation, known) if isinstance(annotation, str) else annotation
        except Exception:
            continue
    return evaluated


def _choose_annotated(cls: type[Registered]) -> None:
    """Reads annotations as ArcticTraining does: ``model_factory: Mine | Other`` is ``model_factory_type = (Mine,
    Other)``, and ``config: MyConfig``, or ``Factory[MyConfig]`` as a base, is ``config_type = MyConfig``.

    What the class assigns itself comes first.
    """
    of_bases = [one for base in vars(cls).get("__orig_bases__", ()) for one in get_args(base)]
    stated = {"config": of_bases[0]} if len(of_bases) == 1 else {}
    for name, annotation in (stated | annotations(cls)).items():
        choices = tuple(one for one in (get_args(annotation) or (annotation,)) if isinstance(one, type))
        if f"{name}_type" in vars(cls) or not choices:
            continue
        if all(getattr(one, "kind", None) == name for one in choices):
            setattr(cls, f"{name}_type", choices)
        elif name == "config" and hasattr(choices[0], "model_fields"):
            inherited = getattr(cls, "config_type", choices[0])
            if (chosen := _with_keys_of(choices[0], inherited)) is not inherited:
                setattr(cls, "config_type", chosen)  # noqa: B010  not every kind of class has one


def _with_keys_of(config: type, inherited: type) -> type:
    """Returns ``config``, or a class that has the keys of ``inherited`` too, which the base of a component reads."""
    if issubclass(inherited, config) or issubclass(config, inherited):
        return inherited if issubclass(inherited, config) else config
    name, module = config.__name__, {"__module__": config.__module__, "__doc__": config.__doc__}
    return new_class(name, (config, inherited), exec_body=lambda space: space.update(module))


def __getattr__(name: str) -> object:
    return former_name(name, "registry")


def _register(cls: type[Registered]) -> None:
    if not hasattr(cls, "kind"):
        raise RegistryError(f"{cls.__qualname__} has a name but no kind; derive it from the base of a component")
    if not isinstance(cls.name, str) or not cls.name:
        raise RegistryError(f"{cls.__qualname__} has the name {cls.name!r}; expected a word")
    built_in = BUILTIN.get(cls.kind, {}).get(cls.name)
    other = None if cls.__module__ == f"arctic_training.{built_in}" else _find(cls.kind, cls.name)
    # the same class may be defined again: a notebook cell run twice, a module imported under its path
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise RegistryError(
            f"the {words(cls.kind)} name {cls.name!r} of {qualified_name(cls)} "
            f"is taken by {qualified_name(other)}; choose another name"
        )
    _REGISTRY[cls.kind][cls.name] = cls
