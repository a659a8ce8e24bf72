"""Slices of the nightly tests, each of less than an hour: every test belongs to exactly one."""

from collections.abc import Sequence

import pytest

SLICES = ("test", "properties", "products", "resume", "figures", "figures_of_text")
"""What a session runs with ``--slice`` and ``-m ''``; ``make test-nightly`` runs one after the other."""

TEXT = {"algebra", "distill", "dpo", "embedding", "grpo", "markov", "needle", "reward", "shakespeare"}
"""Projects whose figures are of text; together they take as long as the others."""

COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""All tests that a session has found, also those that it does not run."""


def slice_of(item: pytest.Item) -> str:
    """Returns the slice of a test."""
    assert isinstance(item, pytest.Function)
    if hasattr(item.function, "_hypothesis_internal_use_settings"):
        return "properties"
    if item.get_closest_marker("nightly") is None:
        return "test"
    if item.path.match("tests/contract/test_resume.py"):
        return "resume"
    if item.path.match("tests/projects/test_figures.py"):
        return "figures_of_text" if item.callspec.params["name"] in TEXT else "figures"
    return "products"


def split(items: Sequence[pytest.Item], name: str) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Returns the tests of the slice ``name``, and the others."""
    mine = [item for item in items if slice_of(item) == name]
    return mine, [item for item in items if slice_of(item) != name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slice", choices=SLICES, help="run one slice of the nightly tests alone; with -m ''")


@pytest.hookimpl(tryfirst=True)  # before -m leaves some out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)
    if config.option.slice:
        items[:], others = split(items, config.option.slice)
        config.hook.pytest_deselected(items=others)
