"""The table of docs/reliability.md, which `python -m tests.faults.documented` writes from the matrix and the marks."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.faults.matrix import FAULTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the matrix -->\n", "<!-- its end -->\n"


def marks(file: Path) -> Iterator[int]:
    """The numbers that a test file's marks name, and those of a table ``SHOWN`` of cases by number."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        nodes: list[ast.expr | None] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            nodes = [*node.args]
        elif (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "SHOWN"
            and isinstance(node.value, ast.Dict)
        ):
            nodes = [*node.value.keys]
        yield from (one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, int))


def table() -> str:
    shown: dict[int, list[str]] = {number: [] for number in FAULTS}
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for number in sorted(set(marks(file))):
            shown[number].append(f"`{file.relative_to(ROOT / 'tests')}`")
    rows = [
        f"| {number} | {fault} | {promise} | {', '.join(shown[number])} |"
        for number, (fault, promise) in FAULTS.items()
    ]
    return "\n".join(["| | fault | promise | shown by, in `tests/` |", "|---|---|---|---|", *rows]) + "\n"


def page() -> str:
    """The page with the table that it should have."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
