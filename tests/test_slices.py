"""The slices of the nightly tests are all of them, each test once, and `make test-nightly` runs every slice."""

import re
from collections import Counter

import pytest

from tests.processes import ROOT
from tests.slices import COLLECTED, SLICES, split


def test_every_test_belongs_to_one_slice(request: pytest.FixtureRequest) -> None:
    collected = request.config.stash[COLLECTED]
    assert request.node in collected
    parts = {name: split(collected, name)[0] for name in SLICES}
    counts = Counter(item.nodeid for part in parts.values() for item in part)
    assert counts == Counter(item.nodeid for item in collected)
    assert set(counts.values()) == {1}
    if len(collected) > 5_000:  # all of them, not those of a room
        assert all(parts.values())


def test_make_runs_every_slice() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.search(r"^SLICE \?= (.+)$", makefile, re.MULTILINE)
    assert named is not None and named[1].split() == [*SLICES, "oldest"]
