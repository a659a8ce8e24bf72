"""Prints a resolved recipe with the origin of each value."""

from collections.abc import Iterator, Mapping

from arctic_training.config.recipe.node import Node, Origin
from arctic_training.config.recipe.yaml_writer import write_word
from arctic_training.config.sections.trainer import TrainerConfig

_MAX_WIDTH = 60


def show(config: TrainerConfig) -> str:
    """Returns YAML with a comment after each value: file, line and column, command line, or default."""
    lines = list(_lines(config.dump(), config._tree, ""))
    width = min(max(len(text) for text, _ in lines), _MAX_WIDTH)
    return "".join(f"{text:{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def _lines(value: Mapping[str, object], node: Node | None, indent: str) -> Iterator[tuple[str, str]]:
    for key, one in value.items():
        below = _below(node, key)
        if isinstance(one, dict) and one:
            yield f"{indent}{write_word(key)}:", ""
            yield from _lines(one, below, indent + "  ")
        elif isinstance(one, list) and any(isinstance(item, dict) for item in one):
            yield f"{indent}{write_word(key)}:", ""
            for number, item in enumerate(one):
                # a single section may stand where a list of them could
                of_item = below.step(str(number)) if below is not None and isinstance(below.value, list) else below
                yield from _item(item, of_item, indent)
        else:
            yield f"{indent}{write_word(key)}: {write_word(one)}", _origin(below)


def _item(item: object, node: Node | None, indent: str) -> Iterator[tuple[str, str]]:
    if not isinstance(item, dict) or not item:
        yield f"{indent}- {write_word(item)}", _origin(node)
        return
    lines = list(_lines(item, node, indent + "  "))
    first, origin = lines[0]
    yield f"{indent}- {first[len(indent) + 2 :]}", origin
    yield from lines[1:]


def _below(node: Node | None, key: str) -> Node | None:
    """Returns the node of ``key``; of a section that is written as a single word, that word."""
    if node is None or not isinstance(node.value, (dict, list)):
        return node if node is not None and isinstance(node.value, str) and key in ("type", "name_or_path") else None
    return node.step(node.key_of(key))


def _origin(node: Node | None) -> str:
    place: Origin | None = node.place() if node is not None else None
    return "default" if place is None else str(place)
