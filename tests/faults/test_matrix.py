"""The table of faults is printed by sessions that could show every row, and fails them when a row is not shown."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import matrix
from tests.faults.matrix import FAULTS, Matrix
from tests.processes import ROOT

TARGETS = dict(
    re.findall(r"^(test[a-z-]*):.*\n\t\S+ -m pytest.* -m '?([a-z ]+)'?$", (ROOT / "Makefile").read_text(), re.M)
)


def test_it_is_printed_where_every_row_could_be_shown() -> None:
    printed = {}
    for name, marks in TARGETS.items():
        plugins: list[Any] = []
        config: Any = SimpleNamespace(
            option=SimpleNamespace(markexpr=marks), pluginmanager=SimpleNamespace(register=plugins.append)
        )
        matrix.pytest_configure(config)
        printed[name] = [type(one) for one in plugins] == [Matrix]
    assert printed == {"test": False, "test-faults": True, "test-long": False, "test-all": True}


@pytest.mark.parametrize(("long", "fault"), [(False, False), (False, True), (True, False), (True, True)])
def test_every_test_is_in_the_session_of_ci(long: bool, fault: bool) -> None:
    """And in one at least of the others."""
    chosen = {name for name, marks in TARGETS.items() if eval(marks, {"long": long, "fault": fault})}
    assert "test-all" in chosen and len(chosen) > 1
    assert re.findall(r"make (test\S*)", (ROOT / ".ci" / "run").read_text().partition("\nset ")[2]) == ["test-all"]


@pytest.mark.parametrize("missing", [None, 12])
def test_a_row_that_no_test_shows_fails_the_session(missing: int | None) -> None:
    table = Matrix()
    for number in FAULTS.keys() - {missing}:
        table.numbers[f"test_{number}"] = [number]
        report: Any = SimpleNamespace(nodeid=f"test_{number}", when="call", outcome="passed", duration=1.0)
        table.pytest_runtest_logreport(report)
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    table.pytest_sessionfinish(session)
    assert session.exitstatus == (pytest.ExitCode.OK if missing is None else pytest.ExitCode.TESTS_FAILED)
