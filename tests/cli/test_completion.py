"""Completion in a real bash: what is offered after a few words and a Tab."""

import shutil
import subprocess
from pathlib import Path

import pytest

from arctic_training.cli.commands import COMMANDS
from arctic_training.cli.main import main
from arctic_training.registry import kinds, names

ASK = """
{script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_arctic_training
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        import io

        output = io.StringIO()
        patch.setattr("sys.stdout", output)
        assert main(["completion", "bash"]) == 0
        return output.getvalue()


def offered(script: str, words: str, folder: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", ASK.format(script=script, words=words)], cwd=folder, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.split()


def test_bash_offers_commands_options_recipes_and_names(script: str, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "other.yml", "rows.jsonl", "runs/recipe.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def after(words: str) -> list[str]:
        return offered(script, words, tmp_path)

    first = after("arctic_training ''")
    assert {*COMMANDS, "train", "validate", "process-data", "recipe.yaml", "other.yml", "runs", "--num_gpus"} <= {
        *first
    }
    assert "rows.jsonl" not in first
    assert after("arctic_training val") == ["validate"]
    assert after("arctic_training rec") == ["recipes", "recipe.yaml"]
    assert after("arctic_training validate rec") == ["recipe.yaml"]
    assert after("arctic_training validate runs/r") == ["runs/recipe.yaml"]
    assert after("arctic_training recipe.yaml --num_") == ["--num_gpus", "--num_nodes"]
    assert after("arctic_training list data_") == [kind for kind in kinds() if kind.startswith("data_")]
    assert after("arctic_training init grp") == ["grpo"]
    assert {"dpo", "sft"} <= {*after("arctic_training init ''")} & {*names("trainer")}
    assert after("arctic_training recipes copy grpo") == ["grpo_gsm8k"]
    assert after("arctic_training completion ''")[:3] == ["bash", "zsh", "fish"]
    assert after("arctic_training migrate --f") == ["--from"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_the_same_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "process-data", "data_source", "--num_gpus"))
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
