"""The configuration of another trainer while it becomes a recipe: what was read of it, and what was not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Values = Mapping[str, object]


@dataclass
class Foreign:
    """A configuration, and the recipe that is made of it.

    A key that is read is one that the recipe accounts for; what no one has read is listed by `unread`.
    """

    values: Values
    folder: Path = field(default_factory=Path)
    """The folder of the file, to which its paths are relative."""
    recipe: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is carried over in another form, or not at all, and why: ``key: reason``."""
    read: set[str] = field(default_factory=set)
    prefix: str = ""
    """The path of these values in the configuration, with a dot at its end; empty for all of it."""
    parts: dict[str, "Foreign"] = field(default_factory=dict)
    """Mappings below that were read, by their paths from here."""

    def take(self, *keys: str) -> object:
        """Returns the value of the first of ``keys`` that has one, and marks all as read; None where there is none."""
        self.read.update(keys)
        return next((one for key in keys if (one := self.values.get(key)) is not None), None)

    def flag(self, *keys: str) -> bool:
        """Returns whether the value of one of ``keys`` is true."""
        return self.take(*keys) in (True, "true", "True")

    def number(self, *keys: str) -> float | None:
        """Returns the value of the first of ``keys`` that has one as a number; None where there is none."""
        value = self.take(*keys)
        try:
            return None if value is None or isinstance(value, bool) else float(str(value))
        except ValueError:
            return None

    def section(self, key: str) -> "Foreign":
        """Returns the mapping below ``key``, whose unread keys are listed with its path; an empty one where there is
        none."""
        value = self.take(key)
        return self._part(key, value if isinstance(value, Mapping) else {})

    def entries(self, *keys: str, word: str) -> list["Foreign"]:
        """Returns the entries of the lists below ``keys``, likewise; one without keys is the value of ``word``."""
        entries: list[Foreign] = []
        for key in keys:
            value = self.take(key)
            is_one = isinstance(value, Mapping)
            for number, one in enumerate(as_list(value)):
                values = one if isinstance(one, Mapping) else {word: one}
                entries.append(self._part(key if is_one else f"{key}.{number}", values))
        return entries

    def _part(self, path: str, values: Values) -> "Foreign":
        known = {str(key): value for key, value in values.items()}
        new = Foreign(known, self.folder, self.recipe, self.notes, prefix=f"{self.prefix}{path}.")
        return self.parts.setdefault(path, new)

    def put(self, path: str, value: object) -> None:
        """Sets a key of the recipe; nothing where ``value`` is None."""
        if value is None:
            return
        *above, last = path.split(".")
        section = self.recipe
        for key in above:
            below = section.setdefault(key, {})
            assert isinstance(below, dict)
            section = below
        section[last] = value

    def move(self, keys: Mapping[str, str]) -> None:
        """Carries values over as they are, from the keys of the configuration to paths of the recipe."""
        for key, path in keys.items():
            self.put(path, self.take(key))

    def note(self, key: str, reason: str) -> None:
        """Adds a note on a key."""
        self.read.add(key)
        self.notes.append(f"{self.prefix}{key}: {reason}")

    def ignore(self, keys: Iterable[str]) -> None:
        """Marks keys as read that change nothing of what is trained, or that every recipe has."""
        self.read.update(keys)

    def unread(self) -> list[str]:
        """Returns the keys that ask for something and that no one has read, each with its value."""
        left = [
            key for key in self.values if key not in self.read and self.values[key] not in (None, False, "", [], {})
        ]
        below = [line for part in self.parts.values() for line in part.unread()]
        return [f"{self.prefix}{key}: {_shown(self.values[key])}" for key in left] + below


def as_list(value: object) -> list[object]:
    """Returns a list as it is, a text with commas as its parts, any other value as the only one, and None as none."""
    if value is None:
        return []
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    return list(value) if isinstance(value, list) else [value]


def integer(value: float | None) -> int | None:
    """Returns a number as an int where it is one."""
    return int(value) if value is not None and value == int(value) else None


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
