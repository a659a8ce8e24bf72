"""Thirteen objectives written as a user would, with the package's public names alone: they train and resume exactly."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arctic_training.testing import check_resume
from tests import processes
from tests.contract import cases
from tests.processes import ROOT

FILES = Path(__file__).parent / "objectives"
FLOW = {"type": "mlp", "sizes": [3, 8, 2]}
VAE = {"type": "outside_vae", "sizes": [2, 8, 2], "dtype": "fp32"}
TIME_MLP = {"type": "time_mlp", "sizes": [2, 8, 2], "time_size": 4}
ENERGY = {"type": "mlp", "sizes": [2, 8, 1], "activation": "silu"}


def points(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    settings = cases.gan(folder)
    return {name: settings[name] for name in ("data", "optimizer", "micro_batch_size")} | {"model": model}


def stopping(folder: Path) -> dict[str, Any]:
    settings = points(folder, {"type": "mlp", "sizes": [2, 8, 2]})
    settings["data"]["eval_sources"] = settings["data"]["sources"]
    return {**settings, "eval_interval": 1, "callbacks": ["outside_patience"]}


def critic(folder: Path) -> dict[str, Any]:
    settings = cases.grpo(folder)
    settings["data"]["pack_samples"] = False
    section = {**settings["model"], "new_weights": ["score"]}
    return {**settings, "critic": section, "critic_optimizer": {"lr": 1e-3}}


def without(names: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def weighted(folder: Path) -> dict[str, Any]:
    """Chats with a weight each, packed."""
    settings = cases.sft(folder)
    chats = Path(settings["data"]["sources"][0])
    rows = [json.loads(line) for line in chats.read_text(encoding="utf-8").splitlines()]
    file = folder / "weighted.jsonl"
    if not file.exists():
        file.write_text("".join(json.dumps({**row, "weight": (n + 1) / 4}) + "\n" for n, row in enumerate(rows)))
    data = {**settings["data"], "sources": [str(file)], "extra_columns": ["weight"], "pack_samples": True}
    return {**settings, "data": data}


RECIPES = {
    "reward": lambda folder: without(("disable_dropout",), cases.reward(folder)),
    "kto": cases.kto,
    "distill": cases.sft,
    "ppo": critic,
    "seq2seq": cases.seq2seq,
    "vae": lambda folder: points(folder, VAE),
    "flow": lambda folder: points(folder, FLOW),
    "contrastive": cases.embedding,
    "classifier": cases.tensor_classifier,
    "early_stopping": stopping,
    "energy": lambda folder: points(folder, ENERGY),
    "diffusion": lambda folder: points(folder, TIME_MLP),
    "weighted": weighted,
}


def interrupt(name: str, folder: str, stage: int) -> int:
    """Returns how often a run was interrupted."""
    settings = RECIPES[name](Path(folder))
    quiet = {"loss_log_interval": 0, "logger": {"level": "ERROR"}, "seed": 7}
    block = {"zero_optimization": {"stage": stage}}
    code = str(FILES / f"{name}.py")
    return check_resume({"type": f"outside_{name}", "code": code, "deepspeed": block, **quiet, **settings}, steps=3)


ONE_OR_TWO = [
    pytest.param(name, world, marks=[] if n % 2 == world - 1 else pytest.mark.nightly)
    for n, name in enumerate(RECIPES)
    for world in (1, 2)
]


@pytest.mark.parametrize(("name", "world"), ONE_OR_TWO)
def test_it_trains_and_resumes_to_the_bit(name: str, world: int, tmp_path: Path) -> None:
    RECIPES[name](tmp_path)  # its files
    interruptions = 3 if name == "ppo" else 2
    assert processes.share(interrupt, world, name, str(tmp_path), 3 if world == 2 else 0) == [interruptions] * world


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def lines_of_code(path: Path) -> int:
    """Returns the lines without blank ones, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    docstrings = {
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return len({one.start[0] for one in tokens if one.type not in nothing} - docstrings)


def test_the_page_states_the_lines_and_that_nothing_private_is_imported() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `tests/outside/objectives/(\w+)\.py` \| .* \| (\d+) \|$", page, re.MULTILINE))
    assert documented == {name: str(lines_of_code(FILES / f"{name}.py")) for name in RECIPES}
    assert {path.stem for path in FILES.glob("*.py")} == set(RECIPES)
    for path in FILES.glob("*.py"):
        assert [name for name in imports(path) if name.startswith("arctic_training.")] == []
