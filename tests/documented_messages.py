"""The messages of docs/troubleshooting.md, which `python -m tests.documented_messages` writes from the cases."""

import re
from pathlib import Path

from tests.bad_inputs.test_bad_inputs import CASES
from tests.bad_inputs.test_bad_recipes import BAD
from tests.processes import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
_BLOCK = re.compile(r"<!-- case (?P<name>[^\n]+) -->\n(```text\n.*?\n```\n)?", re.DOTALL)


def message(name: str) -> str:
    """Returns what the command prints in the case ``name``: ``recipe: key misspelt``, or ``data: no such file``."""
    if name.startswith("recipe: "):
        return "\n".join(f"recipe.yaml{line}" for line in BAD[name.removeprefix("recipe: ")][1])
    return "\n".join(CASES[name].expected(Path("/home/me/project")))


def page() -> str:
    """Returns the page with the messages that it should have."""
    text = PAGE.read_text(encoding="utf-8")
    return _BLOCK.sub(lambda match: f"{match[0].splitlines()[0]}\n```text\n{message(match['name'])}\n```\n", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
