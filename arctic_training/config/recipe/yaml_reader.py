"""Reads YAML 1.2 into a tree with the position of every value, and refuses what could mislead or do harm."""

import re
from collections.abc import Iterator
from dataclasses import replace

import yaml

from arctic_training.config.recipe.node import Node, Origin
from arctic_training.errors.types import RecipeError

MAX_CHARACTERS = 1_000_000
MAX_NODES = 10_000
"""Values of a recipe; an alias counts as all values that it stands for."""
MAX_LEVELS = 50

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BASES = {"0o": (8, re.compile("0o[0-7]+")), "0x": (16, re.compile("0x[0-9a-fA-F]+"))}
_WORDS: dict[str, bool | float | None] = (
    dict.fromkeys(["", "~", "null", "Null", "NULL"])
    | dict.fromkeys(["true", "True", "TRUE"], True)
    | dict.fromkeys(["false", "False", "FALSE"], False)
    | {sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")}
    | dict.fromkeys([".nan", ".NaN", ".NAN"], float("nan"))
)


def scalar(text: str) -> bool | int | float | str | None:
    """Returns the value of an unquoted word in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    base = _BASES.get(text[:2])
    if base is not None and base[1].fullmatch(text):
        return int(text[2:], base[0])
    if len(text) <= 400 and _INTEGER.fullmatch(text):  # nobody means a longer one as a number
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_yaml(text: str, source: str, subject: str = "recipe") -> Node:
    """Returns the mapping in ``text``, which is a recipe or a section of one.

    Raises `RecipeError`, whose lines name ``source``, line and column.
    """
    tree = _Composer(text, Origin(source, 1, 1)).document()
    if tree is None or tree.value is None:
        needs = "; it needs at least a model and data" if subject == "recipe" else ""
        raise RecipeError(f"{source}: the {subject} is empty{needs}")
    if not isinstance(tree.value, dict):
        what = "a list" if isinstance(tree.value, list) else "a single value"
        such = ", such as `type: sft`" if subject == "recipe" else ""
        raise RecipeError(f"{tree.origin}: the {subject} is {what}; expected a mapping{such}")
    return tree


def read_value(text: str, source: str) -> Node:
    """Returns the value in ``text``, as after a key of a recipe. Raises `RecipeError`, whose lines name ``source``."""
    return _Composer(text, Origin(source)).document() or Node(None, Origin(source), Origin(source))


class _Composer:
    """Builds nodes from the parser's events."""

    def __init__(self, text: str, start: Origin) -> None:
        self.start = start
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.open: set[str] = set()
        self.problems: list[str] = []
        self.count = 0
        self.path: list[str] = []
        if len(text) > MAX_CHARACTERS:
            raise RecipeError(f"{start.source}: longer than {MAX_CHARACTERS:,} characters, too long for a recipe")
        if match := _NOT_TEXT.search(text):
            before = text[: match.start()]
            place = self._place(before.count("\n"), len(before.rpartition("\n")[2]))
            raise RecipeError(f"{place}: control character U+{ord(match[0]):04X}; remove it")
        self.text = text

    def document(self) -> Node | None:
        """Returns the only document of the text; None when it is empty. Raises `RecipeError`."""
        try:
            node = self._document(iter(yaml.parse(self.text, Loader=_LOADER)))
        except yaml.YAMLError as error:
            raise RecipeError(self._syntax_error(error)) from None
        if self.problems:
            raise RecipeError(self.problems)
        return node

    def _document(self, events: Iterator[yaml.Event]) -> Node | None:
        node: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise RecipeError(f"{self._at(event)}: a second document begins here; expected one")
            elif isinstance(event, yaml.NodeEvent):
                node, _ = self._node(event, events)
        return node

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event]) -> tuple[Node, int]:
        """Returns the node that begins with ``event``, and the number of its values."""
        place = self._at(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, place)
        assert isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent))
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise RecipeError(f"{place}: tag {tag} is not allowed; write plain values, and text in quotes")
        if event.anchor is not None:
            self.open.add(event.anchor)
        self._count(1, place)
        if isinstance(event, yaml.ScalarEvent):
            node, size = Node(scalar(event.value) if event.implicit[0] else event.value, place), 1
        else:
            if len(self.path) >= MAX_LEVELS:
                raise RecipeError(f"{place}: nested deeper than {MAX_LEVELS} levels, too deep for a recipe")
            entries = self._mapping if isinstance(event, yaml.MappingStartEvent) else self._sequence
            value, size = entries(events)
            node = Node(value, place)
        if event.anchor is not None:
            self.open.discard(event.anchor)
            self.anchors[event.anchor] = (node, size)
        return node, size

    def _alias(self, event: yaml.AliasEvent, place: Origin) -> tuple[Node, int]:
        if event.anchor in self.open:
            raise RecipeError(f"{place}: *{event.anchor} is an alias of the value that it is in, which has no end")
        if event.anchor not in self.anchors:
            raise RecipeError(f"{place}: *{event.anchor} is an alias without an anchor; write &{event.anchor} above it")
        node, size = self.anchors[event.anchor]
        self._count(size, place)
        return replace(node, key=None), size

    def _count(self, values: int, place: Origin) -> None:
        self.count += values
        if self.count > MAX_NODES:
            raise RecipeError(f"{place}: more than {MAX_NODES:,} values with aliases in full, too many for a recipe")

    def _sequence(self, events: Iterator[yaml.Event]) -> tuple[list[Node], int]:
        items: list[Node] = []
        size = 1
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            self.path.append(str(len(items)))
            node, added = self._node(event, events)
            self.path.pop()
            items.append(replace(node, key=node.origin))
            size += added
        return items, size

    def _mapping(self, events: Iterator[yaml.Event]) -> tuple[dict[str | int, Node], int]:
        entries: dict[str | int, Node] = {}
        merged: list[dict[str | int, Node]] = []
        size = 1
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            place = self._at(event)
            key = self._key(event)
            self.path.append(str(key))
            node, added = self._node(next(events), events)
            size += added
            if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                merged += self._merged(node, place)
            elif key in entries:
                first = entries[key].key
                where = f"first on line {first.line}" if first is not None and first.line else "a second time"
                self.problems.append(f"{place}: {'.'.join(self.path)}: given twice ({where}); remove one")
            else:
                entries[key] = replace(node, key=place)
            self.path.pop()
        for other in merged:
            entries = {**other, **entries}
        return entries, size

    def _key(self, event: yaml.Event) -> str | int:
        place = self._at(event)
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.anchors:
            value = self.anchors[event.anchor][0].value
        elif isinstance(event, yaml.ScalarEvent) and event.tag is None:
            value = scalar(event.value) if event.implicit[0] else event.value
            value = value if isinstance(value, (str, int)) and not isinstance(value, bool) else event.value
            if event.anchor is not None:
                self.anchors[event.anchor] = (Node(value, place), 1)
        else:
            value = None
        if not isinstance(value, (str, int)) or value == "":
            raise RecipeError(f"{place}: a key should be a word")
        return value

    def _merged(self, node: Node, place: Origin) -> list[dict[str | int, Node]]:
        several = node.value if isinstance(node.value, list) else [node]
        mappings = [one.value for one in several if isinstance(one.value, dict)]
        if len(mappings) < len(several):
            raise RecipeError(f"{place}: << merges a mapping, or a list of them, by alias: `<<: *name`")
        return mappings

    def _at(self, event: yaml.Event) -> Origin:
        assert event.start_mark is not None
        return self._place(event.start_mark.line, event.start_mark.column)

    def _place(self, line: int, column: int) -> Origin:
        return Origin(self.start.source, line + 1, column + 1) if self.start.line else self.start

    def _syntax_error(self, error: yaml.YAMLError) -> str:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            return f"{self.start.source}: not YAML ({' '.join(str(error).split())})"
        place = self._place(mark.line, mark.column)
        lines = self.text.split("\n")
        line = lines[mark.line] if mark.line < len(lines) else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return f"{place}: a tab is used to indent; use spaces"
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        began = getattr(error, "context_mark", None)
        since = f", which begins on line {began.line + 1}" if began is not None and began.line != mark.line else ""
        return f"{place}: not YAML: {': '.join(filter(None, parts))}{since}"
