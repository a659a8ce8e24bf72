"""What a recipe can name, for a person to read."""

from importlib import import_module

from arctic_training.errors.types import InputError
from arctic_training.registry import kinds, lookup, names, suggest


def listing(kind: str = "") -> str:
    """The name and the subject of every built-in class, or of those of one kind. Raises `InputError`."""
    import_module("arctic_training.builtin")
    if kind and kind not in kinds():
        raise InputError(f"{kind}: no kind of component; {suggest(kind, kinds())}")
    lines = []
    for shelf in [kind] if kind else kinds():
        lines.append(f"{shelf}:")
        width = max(map(len, names(shelf)), default=0)
        for name in names(shelf):
            subject = lookup(shelf, name).__dict__.get("__doc__") or ""
            lines.append(f"  {name:{width}}  {subject.strip().splitlines()[0] if subject.strip() else ''}".rstrip())
        lines.append("")
    return "\n".join(lines)
