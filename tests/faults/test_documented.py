"""The page on reliability promises what the matrix does, and names the tests that show it."""

from tests.faults import documented


def test_the_page_has_the_table_of_the_matrix() -> None:
    mend = "run python -m tests.faults.documented"
    assert documented.page() == documented.PAGE.read_text(encoding="utf-8"), mend


def test_every_promise_is_shown() -> None:
    lines = [line for line in documented.table().splitlines() if line.endswith("|  |")]
    assert not lines, "no test carries the number of these"
