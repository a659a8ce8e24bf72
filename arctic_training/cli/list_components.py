"""Lists the classes that a recipe can name."""

import argparse

from arctic_training.errors.types import InputError
from arctic_training.registry import kinds, lookup, names, suggest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the kind to list."""
    parser.add_argument("kind", metavar="KIND", nargs="?", default="", help="a kind of component (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the classes of a kind, or of all kinds."""
    print(list_components(arguments.kind), end="")
    return 0


def list_components(kind: str = "") -> str:
    """Returns a line with name and subject for every built-in class, or for those of one kind.

    Raises `InputError` for an unknown kind.
    """
    if kind and kind not in kinds():
        raise InputError(f"no kind of component is named {kind!r}; {suggest(kind, kinds())}")
    lines = []
    for one in [kind] if kind else kinds():
        lines.append(f"{one}:")
        width = max(map(len, names(one)), default=0)
        for name in names(one):
            doc = (vars(lookup(one, name)).get("__doc__") or "").strip()
            lines.append(f"  {name:{width}}  {doc.partition(chr(10))[0]}".rstrip())
        lines.append("")
    return "\n".join(lines)


def words() -> list[str]:
    """Returns the kinds of components, for completion."""
    return kinds()
