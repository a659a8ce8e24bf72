"""Shelves of named classes. This module knows nobody: classes come to it by being defined."""

import difflib
import sys
from collections.abc import Iterable
from typing import Any, ClassVar, Self, cast

from arctic_training.errors.types import RegistryError

_REGISTRY: dict[str, dict[str, type["Registered"]]] = {}


class Registered:
    """Base of every class that a recipe can name.

    A direct child opens a shelf with ``kind=``. A descendant that states its own ``name`` stands on that shelf; one
    that does not is an intermediate class and stands nowhere.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
            _REGISTRY.setdefault(kind, {})
        elif "name" in cls.__dict__:
            _register(cls)

    @classmethod
    def registered(cls, name: str) -> type[Self]:
        """The class of this kind with that name. Raises `RegistryError` when there is none."""
        return cast(type[Self], lookup(cls.kind, name))


def lookup(kind: str, name: str) -> type[Registered]:
    """The class of ``kind`` called ``name``. Raises `RegistryError`, which names the nearest."""
    if kind not in _REGISTRY:
        raise RegistryError(f"{kind!r} is no kind of component; there are: {', '.join(kinds())}")
    try:
        return _REGISTRY[kind][name]
    except KeyError:
        what = kind.replace("_", " ")
        raise RegistryError(f"no {what} is named {name!r}; {suggest(name, names(kind))}") from None


def suggest(word: str, known: list[str]) -> str:
    """A sentence for somebody who misspelt ``word``: what he may have meant, then all there is."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}there are: {', '.join(known) or 'none'}"


def names(kind: str) -> list[str]:
    return sorted(_REGISTRY.get(kind, ()))


def numbered(wanted: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Returns the names, each once and none that is ``taken``: the second ``regex`` is ``regex#2``.

    Of a path, such as ``regex/eval``, the part before the last slash is numbered.
    """
    there, made = set(taken), list[str]()
    for name in wanted:
        number, unique = 1, name
        while unique in there:
            number += 1
            head, slash, tail = name.rpartition("/")
            unique = f"{(head or tail).partition('#')[0]}#{number}" + (slash + tail) * bool(head)
        there.add(unique)
        made.append(unique)
    return made


def kinds() -> list[str]:
    return sorted(_REGISTRY)


def qualified_name(cls: type) -> str:
    """A class, and the module or, of one that lies beside a recipe, the file that defines it."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) if hasattr(module, "__source__") else None
    return f"{cls.__qualname__} in {file}" if file else f"{cls.__module__}.{cls.__qualname__}"


def _register(cls: type[Registered]) -> None:
    if not hasattr(cls, "kind"):
        raise RegistryError(f"{cls.__qualname__} has a name but no kind: it must descend from a kind of component")
    if not isinstance(cls.name, str) or not cls.name:
        raise RegistryError(f"{cls.__qualname__} has the name {cls.name!r}; a word is wanted")
    shelf = _REGISTRY[cls.kind]
    there = shelf.get(cls.name)
    # the same class may be defined again: a notebook cell run twice, a module imported under its path
    if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
        raise RegistryError(
            f"the {cls.kind.replace('_', ' ')} name {cls.name!r} of {qualified_name(cls)} "
            f"is taken by {qualified_name(there)}; choose another name"
        )
    shelf[cls.name] = cls
