"""The table of faults is printed by the sessions that can show every row, and fails them when a row is not shown."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.matrix import FAULTS, Matrix, pytest_collection_modifyitems
from tests.processes import ROOT


def test_it_is_printed_by_the_session_of_ci() -> None:
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    recipes = dict(re.findall(r"^(test[a-z-]*):.*\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    printing = {name for name, lines in recipes.items() if "--faults" in lines}
    assert printing == recipes.keys() == {"test", "test-faults"}  # a slice of the nightly tests shows some rows only
    assert re.findall(r"make (test\S*)", ci.partition("\nset ")[2]) == ["test"]


@pytest.mark.parametrize("missing", [None, 12])
def test_a_row_that_no_test_shows_fails_the_session(missing: int | None) -> None:
    table = Matrix()
    for number in FAULTS.keys() - {missing}:
        report: Any = SimpleNamespace(
            nodeid=f"test_{number}", when="call", outcome="passed", duration=1.0, user_properties=[("faults", [number])]
        )
        table.pytest_runtest_logreport(report)
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    table.pytest_sessionfinish(session)
    assert session.exitstatus == (pytest.ExitCode.OK if missing is None else pytest.ExitCode.TESTS_FAILED)


def test_a_number_that_is_no_row_is_refused() -> None:
    item: Any = SimpleNamespace(nodeid="test_x", iter_markers=lambda name: [SimpleNamespace(args=(1, 99))])
    with pytest.raises(pytest.UsageError, match=r"test_x: no fault has the number \{99\}"):
        pytest_collection_modifyitems([item])
