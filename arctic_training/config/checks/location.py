"""Where in the recipe an error belongs that was found while the run was being put together."""

import re
from typing import Any

from arctic_training.config.checks.problems import Problem
from arctic_training.config.recipe.get_config import located

_OF_A_KEY = re.compile(r"(\w+(?:\.\w+)*): (.*)", re.DOTALL)


def place(error: Exception, config: Any) -> None:
    """Put file, line and column before the text of ``error``, where it begins with a key of the recipe."""
    said = _OF_A_KEY.fullmatch(str(error))
    path = tuple(said[1].split(".")) if said else ()
    if said and config._tree is not None and path[0] in type(config).model_fields:
        what, *traceback = said[2].split("\n")
        error.args = ("\n".join([*located([Problem(path, what)], config._tree), *traceback]),)
