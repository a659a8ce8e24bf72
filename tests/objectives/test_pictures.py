"""A classifier and a variational autoencoder learn from folders of pictures, alike on any number of processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from arctic_training.cli.main import main
from tests import processes
from tests.objectives import tiny_runs
from tests.trainer.weights import same


def draw(folder: Path) -> Path:
    """Draws 14 pictures of two classes, 8 x 6 pixels, the left half of one and the right half of the other bright."""
    random = np.random.default_rng(0)
    for number in range(14):
        pixels = random.integers(0, 100, (6, 8)).astype(np.uint8)
        side = number % 2
        pixels[:, 4 * side : 4 * side + 4] += 150
        file = folder / "pictures" / ("left", "right")[side] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder / "pictures"


def sections(folder: Path, kind: str) -> dict[str, Any]:
    source = {"type": "images", "name_or_path": str(folder / "pictures"), "size": [4, 8]}
    encoder: dict[str, Any] = {"type": "conv", "shape": [1, 4, 8], "channels": [4]}
    decoder = {"type": "conv_decoder", "shape": [1, 4, 8], "channels": [4], "inputs": 2}
    model = {**encoder, "outputs": 2}
    if kind == "vae":
        model = {"type": "autoencoder", "encoder": {**encoder, "outputs": 4}, "decoder": decoder}
    return {"model": model, "data": {"sources": [source], "eval_sources": [source]}}


def make_trainer(folder: Path, kind: str, **keys: Any) -> Any:
    keys = {"optimizer": {"lr": 1e-2}, "scheduler": {"name": "constant"}, **keys}
    return tiny_runs.make_trainer(folder, sections(folder, kind), type=kind, **keys)


def train(folder: str, kind: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), kind, **keys))


@pytest.mark.parametrize("kind", ["tensor_classifier", "vae"])
def test_processes_read_the_same_rows(kind: str, tmp_path: Path) -> None:
    draw(tmp_path)
    expected = train(str(tmp_path), kind, micro_batch_size=4)
    for part in processes.share(train, 2, str(tmp_path), kind, micro_batch_size=2):
        same(expected, part)


def test_a_classifier_learns_the_folders(tmp_path: Path) -> None:
    draw(tmp_path)
    trainer = make_trainer(tmp_path, "tensor_classifier", micro_batch_size=14, train_iters=40)
    trainer.train()
    assert trainer.evaluate()["accuracy/eval"] == 1
    trainer.close()


def test_an_autoencoder_learns_to_draw_them(tmp_path: Path) -> None:
    draw(tmp_path)
    trainer = make_trainer(tmp_path, "vae", micro_batch_size=14, train_iters=150, reconstruction="mse")
    trainer.train()
    # the squared error of what is random in a picture is 0.4, and that of the mean of both classes another 2.8
    assert trainer.evaluate()["reconstruction/eval"] < 2
    trainer.close()


def test_the_commands_read_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, recipe = draw(tmp_path), tmp_path / "recipe.yaml"
    settings = {
        "type": "tensor_classifier",
        "micro_batch_size": 4,
        "epochs": 3,
        **sections(tmp_path, "tensor_classifier"),
    }
    recipe.write_text(yaml.safe_dump(settings))
    assert main(["validate", str(recipe)]) == 0
    assert main(["preview", str(recipe), "--json"]) == 0
    assert '"float32 [1, 4, 8]"' in (shown := capsys.readouterr().out) and "labels" in shown
    assert main(["plan", str(recipe), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["trained"] == model["parameters"] > 0
    (pictures / "left" / "3.png").write_text("not a picture")
    assert main(["validate", str(recipe)]) == 2
    assert f"{pictures}/left/3.png: the picture cannot be read: it is of no known format" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "recipe.yaml"]
