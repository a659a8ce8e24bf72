"""Files that a recipe names are checked before anything is started, and all that are missing are reported at once."""

from pathlib import Path

import pytest

from arctic_training.config.get_config import get_config, missing_paths
from arctic_training.config.recipe.describe import descriptions
from arctic_training.config.sections.trainer import TrainerConfig


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_path_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.txt").write_text("a\n")
    recipe = f"""\
model: {{name_or_path: {tmp_path}/empty}}
tokenizer: {{name_or_path: ./no_tokenizer}}
data:
  sources: [no.jsonl, "./no:train", "{tmp_path}/*.jsonl", "{tmp_path}/*.txt"]
output_dir: {file}/runs
checkpoint: {{type: deepspeed, output_dir: {file}}}
logger: {{output_dir: {file}/logs}}
"""
    path = write(tmp_path, recipe)
    assert missing_paths(get_config(path)) == [
        f"{path}:1:23: model.name_or_path: {tmp_path}/empty: no config.json in it; "
        "expected a folder that save_pretrained wrote",
        f"{path}:2:27: tokenizer.name_or_path: ./no_tokenizer: no such file or folder",
        f"{path}:4:13: data.sources.0.name_or_path: no.jsonl: no such file",
        f"{path}:4:23: data.sources.1.name_or_path: ./no: no such file or folder",
        f"{path}:4:37: data.sources.2.name_or_path: {tmp_path}/*.jsonl: no file has such a name",
        f"{path}:5:13: output_dir: {file} is a file; expected a folder",
        f"{path}:6:43: checkpoint.output_dir: {file} is a file; expected a folder",
        f"{path}:7:22: logger.output_dir: {file} is a file; expected a folder",
    ]


def test_what_is_there_and_what_may_be_on_the_hub_is_not_told(
    tmp_path: Path, tiny_model: Path, tiny_chats: Path
) -> None:
    path = write(tmp_path, f"model: {{name_or_path: {tiny_model}}}\ndata: {{sources: [{tiny_chats}, some/where]}}\n")
    before = sorted(tmp_path.rglob("*"))
    assert missing_paths(get_config(path)) == []
    assert missing_paths(get_config({"model": {"name_or_path": "some/model"}, "data": {"sources": "some/data"}})) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_section_that_is_off_needs_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    section = {"type": "deepspeed", "enabled": False, "output_dir": str(tmp_path / "file")}
    config = get_config({"model": {"name_or_path": "m"}, "data": {"sources": "d"}, "checkpoint": section})
    assert missing_paths(config) == []


@pytest.mark.parametrize("key", ["train_iters", "deepspeed", "kill_switch_path"])
def test_keys_carry_their_texts(key: str) -> None:
    class Longer(TrainerConfig):
        more: int = 1
        """What is new."""

    assert descriptions(Longer)[key] == descriptions(TrainerConfig)[key] != ""
    assert descriptions(Longer)["more"] == "What is new."
