"""What each key of a section means: the text below it in the source of its class."""

import ast
import inspect
import textwrap
from functools import cache

from pydantic import BaseModel


def descriptions(config: type[BaseModel]) -> dict[str, str]:
    """The text of every key of ``config`` that has one.

    Pydantic could keep them too, and would read the source of every class each time the command starts.
    """
    found = {name: told.description for name, told in config.model_fields.items() if told.description}
    for cls in reversed(config.__mro__):
        if cls is not BaseModel and issubclass(cls, BaseModel):
            found |= _own(cls)
    return {name: found[name] for name in config.model_fields if name in found}


@cache
def _own(cls: type[BaseModel]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
