"""The floors of the house: imports go down, neighbours do not know one another, heavy libraries stay in their room."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "arctic_training"
FILES = sorted(ROOT.rglob("*.py"))

# lowest first; the longest match counts
FLOORS = [
    ["heartbeat", "parent", "signals", "errors", "secrets", "traces", "distributed", "loss"],
    ["registry", "state", "logging", "failure"],
    ["config", "metrics"],
    ["callback.hooks", "callback.callback", "tracker", "watchdog"],
    ["factory", "generation", "engine", "parallel", "rollout", "evaluation", "callback"],
    ["tokenizer", "data", "model", "optimizer", "scheduler", "checkpoint"],
    ["trainer"],
    ["builtin"],
    ["cli", "arguments", "listing", "entrypoint", "launcher", "__init__", "__main__"],
]
# within the top rooms the order is fixed too
TRAINER = [
    ["explain", "lengths", "lock", "resume", "role", "scalar", "window"],
    ["session"],
    ["assembly"],
    ["trainer"],
    ["language_model_trainer"],
]
# what the others on its floor have in common; it stands lowest there
SHARED = {"factory", "generation", "callback.hooks", "heartbeat"}

HOMES = {
    "deepspeed": ["engine", "parallel", "distributed", "checkpoint.deepspeed_engine"],
    "wandb": ["tracker.wandb"],
    "mlflow": ["tracker.mlflow"],
    "tensorboard": ["tracker.tensorboard"],
}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                inner = ROOT.parent / Path(*whole.split("."))
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                yield (whole if is_module else node.module), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno


def floor(module: str) -> int:
    found = [(len(p), n) for n, rooms in enumerate(FLOORS) for p in rooms if module == p or module.startswith(p + ".")]
    assert found, f"{module} stands on no floor"
    return max(found)[1]


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_go_down(path: Path) -> None:
    me = dotted(path)
    for name, line in imports(path):
        if not name.startswith("arctic_training."):
            continue
        other = name.removeprefix("arctic_training.")
        assert floor(other) <= floor(me), f"{me}:{line} must not import {other}: it is on a floor above"
        if floor(other) == floor(me) and other not in SHARED and me != "__main__" and floor(me) < len(FLOORS) - 1:
            assert other.split(".")[0] == me.split(".")[0], f"{me}:{line} must not import its neighbour {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "trainer").glob("*.py")), ids=dotted)
def test_the_trainers_own_floors(path: Path) -> None:
    def level(name: str) -> int:
        return next((n for n, rooms in enumerate(TRAINER) if name in rooms), len(TRAINER))

    for name, line in imports(path):
        if name.startswith("arctic_training.trainer."):
            other = name.removeprefix("arctic_training.trainer.")
            lower = level(other) < level(path.stem) or level(path.stem) == len(TRAINER)
            assert lower, f"{path.stem}:{line} must not import {other}"


def test_there_is_no_circle() -> None:
    graph = {
        dotted(path): {n.removeprefix("arctic_training.") for n, _ in imports(path) if n.startswith("arctic_training.")}
        for path in FILES
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    me = dotted(path)
    for name, line in imports(path):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None:
            assert any(me == h or me.startswith(h + ".") for h in homes), f"{me}:{line} must not import {name}"
    for name, line in imports(path, top_level_only=True):
        slow = name.split(".")[0] in (
            "deepspeed",
            "transformers",
            "datasets",
            "peft",
            "pandas",
            "pyarrow",
            "liger_kernel",
        )
        assert not slow, f"{me}:{line} imports {name} before a run needs it"
    assert "TYPE_CHECKING" not in path.read_text(encoding="utf-8"), f"{me} hides a circle"


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=dotted)
def test_the_first_line_says_the_subject(path: Path) -> None:
    assert re.match(r'"""[A-Z].*', path.read_text(encoding="utf-8")), f"{dotted(path)} does not say what it is about"


def test_loss_knows_torch_only() -> None:
    for path in (ROOT / "loss").glob("*.py"):
        for name, line in imports(path):
            known = name.split(".")[0] in ("torch", "math", "collections", "typing", "dataclasses", "enum", "functools")
            assert known or name.startswith("arctic_training.loss"), f"{path.name}:{line} imports {name}"


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, arctic_training; "
        "bad = {'torch', 'pydantic', 'loguru'} & sys.modules.keys(); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_built_in_imports_no_heavy_library() -> None:
    code = (
        "import sys, arctic_training.builtin; "
        "bad = {'deepspeed', 'transformers', 'datasets', 'peft'} & sys.modules.keys(); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
