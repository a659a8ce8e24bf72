"""The descriptions of the keys of a section: the string below each in the source of its class."""

import ast
import inspect
import textwrap
from functools import cache

from pydantic import BaseModel


def descriptions(config: type[BaseModel]) -> dict[str, str]:
    """Returns the description of every key of ``config`` that has one.

    Pydantic's ``use_attribute_docstrings`` would read the source of every class each time the command starts.
    """
    texts = {name: field.description for name, field in config.model_fields.items() if field.description}
    for cls in reversed(config.__mro__):
        if cls is not BaseModel and issubclass(cls, BaseModel):
            texts |= _own(cls)
    return {name: texts[name] for name in config.model_fields if name in texts}


@cache
def _own(cls: type[BaseModel]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            texts[field.target.id] = inspect.cleandoc(text.value.value)
    return texts
