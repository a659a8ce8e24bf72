"""The floors of the house: imports go down, neighbours do not know one another, heavy libraries stay in their room."""

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.processes import ROOT as REPOSITORY
from tests.tracked import tracked

ROOT = REPOSITORY / "arctic_training"
FILES = tracked("arctic_training/**/*.py")

# lowest first; the longest match counts
FLOORS = [
    [
        "distributed.environment",
        "distributed.heartbeat",
        "distributed.signals",
        "launch.threads",
        "errors",
        "display",
        "distributed.process_group",
        "distributed.collectives",
        "loss",
        "compatibility",
        "builtin",
    ],
    ["registry", "state", "logging", "distributed.report"],
    ["config", "metrics"],
    [
        "callback.hooks",
        "tracker",
        "engine",
        "distributed.watchdog",
        "symbolic",
        "checkpoint.folder",
        "checkpoint.saved_model",
    ],
    ["component", "generation", "distributed.sequence_parallel", "reward", "evaluation", "callback"],
    ["tokenizer", "data", "model", "optimizer", "scheduler", "checkpoint"],
    ["trainer"],
    ["objectives", "deployment", "report"],
    ["cli", "launch", "testing", "__init__", "__main__"],
]
# within the top rooms the order is fixed too
TRAINER = [
    ["window"],
    ["former_names"],
    [
        "callbacks",
        "ending",
        "expected_metrics",
        "isolated_run",
        "lock",
        "loss_checks",
        "named_runs",
        "out_of_memory",
        "resume",
        "role",
        "row_buffer",
        "schedule",
        "throughput",
        "trackers",
    ],
    ["bare", "evaluation", "memory", "role_sections", "session"],
    ["passed", "view"],
    ["update"],
    ["assembly", "outputs"],
    ["trainer"],
]
# the sub-rooms of a room, lowest first
SUB_ROOMS = {
    "config": ["checks", "recipe", "sections", "get_config", "show", "starter", "schema", "migration"],
    "data": ["formats", "transforms", "sources", "tokenization", "preparation", "batching", "preview", "factories"],
}
# what the others on its floor have in common; it stands lowest there
SHARED = ("component", "generation", "callback.hooks", "distributed.heartbeat", "distributed.environment")

HOMES = {
    "deepspeed": ["engine", "distributed", "checkpoint.deepspeed"],
    "wandb": ["tracker.wandb"],
    "mlflow": ["tracker.mlflow"],
    "swanlab": ["tracker.swanlab"],
    "tensorboard": ["tracker.tensorboard"],
    "trackio": ["tracker.trackio"],
    "torchmetrics": ["evaluation.torchmetrics"],
}


# how many annotations of each room are `Any`; the numbers only fall
ANY = {
    "__init__": 1,
    "checkpoint": 2,
    "component": 2,
    "config": 3,
    "data": 26,
    "deployment": 3,
    "distributed": 7,
    "engine": 6,
    "launch": 3,
    "logging": 1,
    "loss": 6,
    "model": 11,
    "objectives": 16,
    "trainer": 37,
}


SLOW = {
    "deepspeed",
    "transformers",
    "datasets",
    "peft",
    "pandas",
    "pyarrow",
    "liger_kernel",
    "torchmetrics",
    "zuko",
    "diffusers",
}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    tree = parsed(path)
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                inner = ROOT.parent / Path(*module.split("."))
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                yield (module if is_module else node.module), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno


def imports_for_types(path: Path) -> Iterator[tuple[str, int]]:
    """The imports under TYPE_CHECKING, with their lines."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for one in ast.walk(node):
                if isinstance(one, ast.ImportFrom):
                    yield one.module or ".", one.lineno
                elif isinstance(one, ast.Import):
                    yield from ((alias.name, one.lineno) for alias in one.names)


def untyped(path: Path) -> Iterator[str]:
    """The annotations of a file that are `Any` and nothing else, and the aliases of it, each with its line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            stated = node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stated = node.returns
        else:
            stated = node.value if isinstance(node, ast.Assign) else None
        if stated is not None and ast.unparse(stated) in ("Any", "typing.Any", "'Any'"):
            yield f"{dotted(path)}:{node.lineno}"


def floor(module: str) -> int:
    matches = [
        (len(p), n) for n, rooms in enumerate(FLOORS) for p in rooms if module == p or module.startswith(p + ".")
    ]
    assert matches, f"{module} stands on no floor"
    return max(matches)[1]


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of this package that a file imports, with their lines."""
    for name, line in imports(path):
        if name.startswith("arctic_training."):
            yield name.removeprefix("arctic_training."), line


def each(rule: Callable[[Path], Iterator[str]], files: Sequence[Path] = FILES) -> None:
    """Fails with every breach of the rule in every file."""
    breaches = [breach for path in files for breach in rule(path)]
    assert not breaches, "\n".join(breaches)


def test_imports_go_down() -> None:
    def rule(path: Path) -> Iterator[str]:
        me = dotted(path)
        for other, line in own_imports(path):
            if floor(other) > floor(me):
                yield f"{me}:{line} must not import {other}: it is on a floor above"
            alike = floor(other) == floor(me) and not f"{other}.".startswith(tuple(f"{s}." for s in SHARED))
            if alike and floor(me) < len(FLOORS) - 1 and other.split(".")[0] != me.split(".")[0]:
                yield f"{me}:{line} must not import its neighbour {other}"

    each(rule)


def test_the_trainers_own_floors() -> None:
    def level(name: str) -> int:
        return next((n for n, rooms in enumerate(TRAINER) if name in rooms), len(TRAINER))

    def rule(path: Path) -> Iterator[str]:
        for name, line in own_imports(path):
            other = name.removeprefix("trainer.")
            if other != name and level(path.stem) < len(TRAINER) and level(other) >= level(path.stem):
                yield f"trainer.{path.stem}:{line} must not import {other}"

    each(rule, tracked("arctic_training/trainer/*.py"))


def test_sub_rooms_import_only_those_below() -> None:
    def level(module: str, room: str) -> int:
        names = module.split(".")
        return SUB_ROOMS[room].index(names[1]) if names[0] == room and len(names) > 1 else -1

    def rule(path: Path) -> Iterator[str]:
        me = dotted(path)
        room = me.split(".")[0]
        if room in SUB_ROOMS and path.name != "__init__.py":
            for other, line in own_imports(path):
                if level(other, room) > level(me, room):
                    yield f"{me}:{line} must not import {other}: it is in a sub-room above"

    each(rule)


def test_there_is_no_circle() -> None:
    graph = {dotted(path): {name for name, _ in own_imports(path)} for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_libraries_stay_in_their_rooms() -> None:
    def rule(path: Path) -> Iterator[str]:
        me = dotted(path)
        for name, line in imports(path):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None and not any(me == h or me.startswith(h + ".") for h in homes):
                yield f"{me}:{line} must not import {name}"
        for name, line in imports(path, top_level_only=True):
            if name.split(".")[0] in SLOW:
                yield f"{me}:{line} imports {name} before a run needs it"
        for name, line in imports_for_types(path):
            if name.split(".")[0] == "arctic_training":
                yield f"{me}:{line} hides an import of {name}; under TYPE_CHECKING only types of libraries are imported"

    each(rule)


def test_what_deepspeed_keeps_at_parameters_is_read_in_the_engine_alone() -> None:
    pattern = re.compile(r"\bds_(id|shape|numel|tensor|status|persist)\b")
    outside = [file for file in FILES if "/arctic_training/engine/" not in file.as_posix()]
    assert [str(file) for file in outside if pattern.search(file.read_text("utf-8"))] == []


def test_any_stands_only_where_no_type_is_known() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        places.setdefault(dotted(path).split(".")[0], []).extend(untyped(path))
    more = {room: lines for room, lines in places.items() if len(lines) > ANY.get(room, 0)}
    assert not more, f"more annotations are Any than were; state a type, or object for any value: {more}"


def test_files_are_short_and_few_stand_at_the_top() -> None:
    long = {dotted(path): lines for path in FILES if (lines := path.read_text(encoding="utf-8").count("\n")) > 300}
    assert not long, f"more than 300 lines: {long}"
    trainer = (ROOT / "trainer" / "trainer.py").read_text(encoding="utf-8").count("\n")
    assert trainer <= 250, f"trainer/trainer.py has {trainer} lines; what is no part of the loop has a file of its own"
    top = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(top) <= 8, f"files that belong into a room: {top}"


def test_an_objective_is_short() -> None:
    """Lines of code of a trainer class, without docstrings, comments and blank lines."""
    long: dict[str, int] = {}
    for path in tracked("arctic_training/objectives/*.py"):
        code = code_lines(path)
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and states_name(node):
                count = len(code.intersection(range(node.lineno, (node.end_lineno or 0) + 1)))
                if count > 80:
                    long[node.name] = count
    assert not long, f"more than 80 lines of code: {long}"


def states_name(node: ast.ClassDef) -> bool:
    """Whether the class is one that a recipe can name."""
    targets = [one.targets[0] for one in node.body if isinstance(one, ast.Assign)]
    return any(isinstance(target, ast.Name) and target.id == "name" for target in targets)


def code_lines(path: Path) -> set[int]:
    """The numbers of the lines with code, without those of docstrings and other texts that stand alone."""
    texts: set[int] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts.update(range(node.lineno, (node.end_lineno or 0) + 1))
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in empty]
    return {line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - texts


def test_the_page_names_where_things_are_decided() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| `([\w/]+\.py)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(rows) > 20
    for file, name in rows:
        definitions = (ast.FunctionDef, ast.ClassDef)
        names = {one.name for one in ast.walk(parsed(ROOT / file)) if isinstance(one, definitions)}
        assert name in names, f"{file} has no {name}"


def test_the_first_line_says_the_subject() -> None:
    def rule(path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8")
        if text and not re.match(r'"""[A-Z].*', text):
            yield f"{dotted(path)} does not say what it is about"

    each(rule)


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
        "import sys\nfrom arctic_training.registry import kinds, lookup, names\n"
        "[lookup(kind, name) for kind in kinds() for name in names(kind)]\n"
        "bad = {'deepspeed', 'transformers', 'datasets', 'peft'} & sys.modules.keys(); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
