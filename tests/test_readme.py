"""The README's files are written and its commands run, as they stand there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def written(kind: str) -> tuple[str, str]:
    """Name and text of the README's file of that kind; its first line names it."""
    text = next(text for found, text in BLOCKS if found == kind)
    name = re.match(r"# (\S+)\n", text)
    assert name
    return name[1], text


def test_it_opens_with_the_two_commands() -> None:
    assert COMMANDS[:2] == ["make quickstart", "make test"]
    assert README.split("```")[1] == "sh\nmake quickstart\nmake test\n"


def test_every_target_it_names_is_there_and_runs_in_ci_or_is_measured_elsewhere() -> None:
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in COMMANDS:
        if command.startswith("make "):
            assert command in ci, command


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_its_recipe_its_trainer_and_its_commands_work(tmp_path: Path) -> None:
    """With a tiny model in the place of the one that the quick start leaves."""
    recipe, text = written("yaml")
    model = re.search(r"name_or_path: (\S+)", text)
    assert model
    tiny.save_model(tmp_path / model[1])
    (tmp_path / recipe).parent.mkdir()
    (tmp_path / recipe).write_text(text)
    name, code = written("python")
    (tmp_path / name).write_text(code)
    chats = next(text for kind, text in BLOCKS if kind == "json")
    (tmp_path / "mine" / "chats.jsonl").write_text(chats)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    ran = []
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] != "arctic_training" or "projects/quickstart/recipe.yaml" in words:
            continue
        program = [sys.executable, "-m", "arctic_training.cli.main", *words[1:]]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        ran.append(command)
    assert len(ran) == 3
    metrics = tmp_path / "mine" / "runs" / "recipe" / "metrics.jsonl"
    losses = [json.loads(line).get("loss") for line in metrics.read_text().splitlines()]
    assert all(loss is not None for loss in losses[-1:])
