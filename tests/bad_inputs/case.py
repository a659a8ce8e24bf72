"""A bad input: the files that are written, and the message of the command."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

Content = str | bytes | Callable[[Path], object]
"""Of a file; or what makes a file, or a folder, at the path it is given."""

ASKED = {"role": "user", "content": "one and two"}
ANSWER = {"role": "assistant", "content": "three"}
CHAT = [ASKED, ANSWER]


def lines(*rows: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


GOOD_ROWS = lines(*({"messages": CHAT} for _ in range(8)))


def sft(source: str = "rows.jsonl", *, model: str = "model", data: str = "", more: str = "") -> str:
    """A recipe on two lines, and ``more``."""
    return f"model: {{name_or_path: {model}, dtype: fp32}}\ndata: {{sources: [{source}]{data}}}\n{more}"


@dataclass(frozen=True)
class Case:
    says: str | Sequence[str]
    """Standard error, line by line; ``{here}`` is the folder, ``{top}`` the one above, with cache and home. A line that
    ends in ... is compared up to there."""
    recipe: str = sft()
    files: Mapping[str, Content] = field(default_factory=dict)
    """Beside the recipe; ``rows.jsonl`` and ``model`` are good where they are not given here."""
    words: Sequence[str] = ()
    """What follows the recipe on the command line."""
    code: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: Sequence[str] = ()
    """Libraries that are as if they were not installed."""
    cached: bool = False
    """It is found when the data are prepared: they stay in the cache, for when the rest is mended."""
    starts: bool = False
    """It is found when the run has begun, and has a folder."""

    def set_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sets the variables of the environment, and hides the libraries."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        for name in self.absent:
            monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]

    def plant(self, folder: Path, model: Path) -> None:
        files = {"recipe.yaml": self.recipe, "rows.jsonl": GOOD_ROWS, "model": lambda at: at.symlink_to(model)}
        for name, content in {**files, **self.files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)

    def expected(self, folder: Path) -> list[str]:
        lines = [self.says] if isinstance(self.says, str) else self.says
        return [line.replace("{here}", str(folder)).replace("{top}", str(folder.parent)) for line in lines]

    def may_write(self, path: str) -> bool:
        """``path`` is seen from the folder above the recipe's."""
        if path.startswith("here/runs"):
            return self.starts
        return path.startswith("cache") and (self.cached or self.starts)


def same(lines: Sequence[str], expected: Sequence[str]) -> bool:
    return len(lines) == len(expected) and all(
        one.startswith(start.removesuffix("...")) if start.endswith("...") else one == start
        for one, start in zip(lines, expected, strict=True)
    )


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with size and time of what is no folder."""
    files = {}
    for at, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(at) / name
            about = path.lstat()
            files[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (about.st_size, about.st_mtime_ns)
    return files


def altered(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A copy of the tiny model that ``change`` has done something to."""

    def make(path: Path) -> None:
        tiny.save_model(path)
        change(path)

    return make
