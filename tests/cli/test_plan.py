"""The command `plan`: what it prints, as a table and as JSON, and what it refuses."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.cli.main import main
from arctic_training.cli.plan import _size
from arctic_training.registry import lookup
from arctic_training.trainer.assembly import used_roles
from arctic_training.trainer.plan import Machine, make_plan
from arctic_training.trainer.validation import unstarted
from tests.contract import cases

RECIPE = "model: {name_or_path: model, dtype: fp32}\ndata: {sources: [rows.jsonl], max_length: 128}\ntrain_iters: 5\n"


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path, tiny_chats: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCTIC_TRAINING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):  # no weights
        shutil.copy(tiny_model / name, tmp_path / "model" / name)
    shutil.copy(tiny_chats, tmp_path / "rows.jsonl")
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_the_table_fits_a_terminal_and_has_the_numbers_of_the_json(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir())
    words = ["plan", "recipe.yaml", "--gpus", "4", "--gpu-memory", "80g", "micro_batch_size=64"]
    assert main(words) == 0
    text, err = capsys.readouterr()
    lines = text.splitlines()
    assert (err, max(map(len, lines)) <= 80) == ("", True)
    assert lines[0] == "recipe.yaml: 4 GPUs of 80.0 GiB"
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True and plan["alternatives"] == []
    assert plan["machine"]["device_memory"] == 80 * 2**30
    (model,) = plan["models"]
    assert f"model      {model['parameters']:,}   {model['trained']:,}" in lines
    start = next(n for n, line in enumerate(lines) if line.startswith("memory of each")) + 2
    rows = [line.split() for line in lines[start : start + len(plan["placements"])]]
    for row, one in zip(rows, plan["placements"], strict=True):
        assert (row[0] == ">") == one["is_recipe"]
        numbers = row[1 + one["is_recipe"] + (one["offload"] != "none") :]
        total, weights = (one[name] / 2**20 for name in ("total", "weights"))
        assert float(numbers[6].replace(",", "")) == pytest.approx(total, abs=0.06 if total < 100 else 0.6)
        assert float(numbers[0]) == pytest.approx(weights, abs=0.06)
    assert lines[-1].startswith("It fits: ")
    assert sorted(os.listdir()) == before


def test_what_does_not_fit_is_said_with_what_would(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "recipe.yaml", "--gpu-memory", "10m", "micro_batch_size=64"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "\n>*" in text
    listed = text.partition("What would:\n")[2].splitlines()
    assert listed and listed[0].startswith("  micro_batch_size: 1 with 64 times the gradient_accumulation_steps")
    assert main([*words, "micro_batch_size=1", "gradient_accumulation_steps=64"]) == 0
    assert "It fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu-memory", "much"], "argument --gpu-memory: expected a size such as 80g, got 'much'; see"),
        (["--gpus", "0"], "argument --gpus: expected an integer above 0, got '0'; see"),
        (["model.dtype=fp23"], "command line: model.dtype: "),
        (["model.hf_config_kwargs={hiden: 3}"], "command line: model.hf_config_kwargs: LlamaConfig has no 'hiden'"),
        (["model.name_or_path=some/model"], "command line: model.name_or_path: some/model: no folder here, and "),
    ],
)
def test_what_cannot_be_planned_is_refused(
    words: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "recipe.yaml", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(says), err
    assert err.count("\n") == 1


def test_sizes_are_binary() -> None:
    sizes = {"80g": 80 * 2**30, "80GiB": 80 * 2**30, "80 GB": 80 * 2**30, "1.5t": 1.5 * 2**40, "512m": 2**29, "7": 7}
    assert {text: _size(text) for text in sizes} == sizes


def test_a_mesh_divides_the_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two layers of 32 by 32, 2 of 32 by 16, 32 by 32, and 3 of 32 by 64, a process has half."""
    plans = []
    for words in ([], ["mesh.model=2"]):
        assert main(["plan", "recipe.yaml", "--gpus", "4", *words, "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    alone, mesh = ({(one["stage"], one["offload"]): one for one in plan["placements"]} for plan in plans)
    assert sorted(mesh) == [(1, "none"), (2, "none")]
    elsewhere = (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64) * 2 // 2
    total = plans[0]["models"][0]["parameters"]
    assert plans[1]["models"][0]["parameters"] == total
    for key, one in mesh.items():
        assert one["weights"] == alone[key]["weights"] - 4 * elsewhere
        assert one["master"] == 4 * (total - elsewhere) // 2  # ZeRO shards it over two
    assert main(["plan", "recipe.yaml", "--gpus", "4", "mesh.model=2"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "recipe.yaml: 4 processes, 2 to a model"
    assert main(["plan", "recipe.yaml", "--gpus", "3", "mesh.model=2"]) == 2
    assert "mesh.model: 2 processes share a model, and the run has 3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["diffusion", "energy", "flow", "gan", "tensor_classifier", "vae"])
def test_networks_of_tensors_are_counted(name: str, tmp_path: Path) -> None:
    """By the count with which a run on a GPU is refused: weights, gradients and the state of Adam, in fp32."""
    config = get_config(cases.recipe(name, tmp_path))
    plan = make_plan(config, Machine(1, "gpu", 80 * 2**30))
    assert plan.fits is True and plan.is_refused is False
    trained = sum(model.footprint.trained for model in plan.models)
    assert trained == sum(one.numel() for model in networks(config) for one in model.parameters()) > 0
    assert plan.placement.estimate.weights == 4 * trained and plan.placement.estimate.optimizer == 8 * trained


def networks(config: Any) -> list[Any]:
    """Returns the networks that a run builds."""
    sections = [getattr(config, role.name) for role in used_roles(unstarted(config))]
    return [lookup("model_factory", one.type)(unstarted(config), one)() for one in sections]  # type: ignore[call-arg]
