"""Checks that the libraries are installed which sections of a recipe need beside those of this package."""

from collections.abc import Iterator
from importlib.util import find_spec

from pydantic import BaseModel

from arctic_training.config.checks.problems import Problem


def library_problems(value: object, path: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Yields each library that is missing for a config, at ``path`` of the recipe, or for a section at any depth.

    A section names them in its class attribute ``libraries``. None is imported. One with ``enable: false`` needs none.
    """
    if isinstance(value, BaseModel):
        if getattr(value, "enable", True) is False:
            return
        for library, package in getattr(value, "libraries", {}).items():
            if find_spec(library) is None:
                needs = f"{getattr(value, 'type', '')} needs the library {library}"
                yield Problem(path, f"{needs}: pip install '{package}'")
        for name in type(value).model_fields:
            yield from library_problems(getattr(value, name), (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from library_problems(one, (*path, str(number)))
