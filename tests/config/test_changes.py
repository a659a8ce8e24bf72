"""Which keys of a recipe count when a run is resumed, and how a difference is reported."""

from pathlib import Path
from typing import Annotated, Any

import pytest

from arctic_training.config.sections.base import BaseConfig, ComponentConfig
from arctic_training.config.sections.changes import RESUME_SAFE, Change, ResumeSafe, differences, resume_relevant_config

pytestmark = pytest.mark.fault(19)


class Part(ComponentConfig):
    rate: float = 1.0
    where: Path = Path("here")
    threads: Annotated[int, RESUME_SAFE] = 1


class Whole(BaseConfig):
    part: Part = Part()
    parts: list[Part] = []
    names: set[str] = set()
    block: Annotated[dict[str, Any], ResumeSafe(but=frozenset({"clip"}))] = {}

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def lines_of(saved: Whole, now: Whole) -> list[str]:
    return [str(change) for change in differences(resume_relevant_config(saved), now, resume_relevant_config(now))]


@pytest.mark.parametrize(
    ("saved", "now", "lines"),
    [
        ({}, {}, []),
        ({"part": {"rate": 2}}, {}, ["part.rate: saved 2.0, now 1.0"]),
        ({"part": {"threads": 2}}, {}, []),
        ({"part": {"where": "./here"}}, {"part": {"where": Path.cwd() / "here"}}, []),
        ({"part": {"type": "a", "rate": 2}}, {"part": {"type": "b"}}, ["part.type: saved a, now b"]),
        ({"parts": [{}, {"rate": 2}]}, {"parts": [{}, {"rate": 3}]}, ["parts.1.rate: saved 2.0, now 3.0"]),
        ({"parts": [{}]}, {"parts": [{}, {}]}, ["parts: saved 1 entry, now 2 entries"]),
        ({"names": set("abcdefgh")}, {"names": set("hgfedcba")}, []),
        ({"block": {"clip": 1, "size": 2}}, {"block": {"clip": 1.0, "size": "auto"}}, []),
        ({"block": {"clip": "1e-1"}}, {"block": {"clip": 0.1}}, []),
        ({"block": {"clip": 1}}, {"block": {}}, ["block.clip: saved 1, now nothing"]),
    ],
)
def test_what_counts(saved: Any, now: Any, lines: list[str]) -> None:
    assert lines_of(Whole(**saved), Whole(**now)) == lines


def test_keys_that_came_or_went_with_a_version_count_when_they_say_something() -> None:
    now = Whole(part=Part(type="a", rate=3.0))
    saved = resume_relevant_config(now)
    del saved["names"], saved["part"]["rate"]
    saved["gone"] = 1
    assert [str(change) for change in differences(saved, now, resume_relevant_config(now))] == [
        "part.rate: saved nothing, now 3.0"
    ]


@pytest.mark.parametrize(
    ("key", "allowed", "named"),
    [
        ("data.seed", "data", True),
        ("data.seed", "data.seed", True),
        ("data.seed", "data.se", False),
        ("data.seed", "data.seed.x", False),
        ("optimizer.learning_rate", "optimizer.lr", True),
        ("data.samples", "data", True),
        ("database", "data", False),
    ],
)
def test_what_a_name_covers(key: str, allowed: str, named: bool) -> None:
    assert Change(key, 1, 2).named_by([allowed]) is named
