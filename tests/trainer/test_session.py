"""What a run folder says of the environment of its run."""

import subprocess
from pathlib import Path

import pytest

from arctic_training.trainer.session import environment_facts


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_the_recipe_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / "recipes"
    folder.mkdir(parents=True)
    assert environment_facts(folder)["git_commit"] is None
    (folder / "recipe.yaml").write_text("type: sft\n")
    git(tmp_path / "mine", "init", "--quiet")
    git(folder, "add", "recipe.yaml")
    git(folder, "commit", "--quiet", "-m", "a recipe")
    git(folder, "tag", "-m", "a name", "v1")
    commit = git(folder, "rev-parse", "HEAD")
    assert environment_facts(folder)["git_commit"] == commit
    (folder / "recipe.yaml").write_text("type: causal\n")
    assert environment_facts(folder)["git_commit"] == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert environment_facts(folder)["git_commit"] is None
