"""`init` writes a recipe of every trainer that validates; `recipes` copies those that come with the package."""

import re
from pathlib import Path

import numpy as np
import pytest

from arctic_training import get_config
from arctic_training.cli.main import main
from arctic_training.cli.recipes import shipped
from arctic_training.registry import lookup, names

TRAINERS = [name for name in names("trainer") if lookup("trainer", name).__module__.startswith("arctic_training.")]
SHAPES = {"tensor_classifier": [64], "vae": [64], "diffusion": [8, 8]}
"""The shape of a row that the network of a recipe takes, other than two numbers."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_recipe_of_every_trainer_validates(trainer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the keys in comments too, which have their defaults: the same config is read of it."""
    assert main(["init", trainer, "-o", "recipe.yaml"]) == 0
    for name in re.findall(r"\w+\.np[yz]", Path("recipe.yaml").read_text()):  # there are no public sets of tensors
        rows = np.random.default_rng(0).random((512, *SHAPES.get(trainer, [2])), dtype=np.float32)
        if name.endswith("z"):
            np.savez(name, rows=rows, labels=np.arange(len(rows)) % 2)
        else:
            np.save(name, rows)
    assert main(["validate", "recipe.yaml"]) == 0, capsys.readouterr().err
    text = Path("recipe.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 80
    uncommented = "\n".join(line[1:] if line[:1] == "#" and line[1:2].isalpha() else line for line in text.splitlines())
    Path("full.yaml").write_text(uncommented)
    ours, full = (get_config(name).dump() for name in ("recipe.yaml", "full.yaml"))
    assert ours == full


def test_every_key_of_the_trainer_is_there_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "dpo"]) == 0
    text = capsys.readouterr().out
    assert "# How strongly the policy is held to the reference" in text
    assert "\nbeta: 0.1\n" in text and "\n#label_smoothing: 0.0\n" in text
    assert "#eval_log_iter_interval" not in text
    assert main(["init", "dpo", "--all"]) == 0
    text = capsys.readouterr().out
    assert "\n#eval_log_iter_interval: 1\n" in text and "\n  #pack_samples: true\n" in text


def test_values_of_the_command_line_are_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "sft", "model.name_or_path=mine", "data.sources=[a.jsonl, b.jsonl]", "~checkpoint"]) == 0
    Path("recipe.yaml").write_text(capsys.readouterr().out)
    config = get_config("recipe.yaml").dump()
    assert config["model"]["name_or_path"] == "mine"  # type: ignore[index]
    assert [one["name_or_path"] for one in config["data"]["sources"]] == ["a.jsonl", "b.jsonl"]  # type: ignore[index]
    assert config["checkpoint"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init", "dpoo"], "no trainer is named 'dpoo'; did you mean 'dpo'?"),
        (["init", "sft", "optimizer.lrr=1"], "optimizer.lrr: unknown; did you mean 'lr'?"),
        (["init", "sft", "-o", "there.yaml"], "there.yaml exists, and is not overwritten"),
        (["recipes", "copy", "grpo_gsm8"], "no recipe is named 'grpo_gsm8'; did you mean 'grpo_gsm8k'?"),
        (["recipes", "copy"], "no recipe is named ''; there are: "),
        (["recipes", "copy", "grpo_gsm8k", "there.yaml"], "there.yaml exists, and is not overwritten"),
    ],
)
def test_mistakes(words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.yaml").write_text("mine")
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in here.iterdir()] == [("there.yaml", "mine")]


def test_the_recipes_of_the_package_are_listed_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(shipped())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)
    Path("folder").mkdir()
    for destination, file in (
        ([], "lora_llama3.yaml"),
        (["folder"], "folder/lora_llama3.yaml"),
        (["a.yaml"], "a.yaml"),
    ):
        assert main(["recipes", "copy", "lora_llama3", *destination]) == 0
        assert Path(file).read_text() == shipped()["lora_llama3"]
