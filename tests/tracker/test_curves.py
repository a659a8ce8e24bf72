"""Curves: the picture of a run's metrics, and that it never ends a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arctic_training import get_config
from arctic_training.launch.worker import run
from arctic_training.tracker.curves import draw_curves, read_curves
from tests.contract.cases import recipe


def save_metrics(path: Path, values: list[float]) -> Path:
    lines = [{"step": step, "time": 0.0, "loss": value, "epoch": 0.1} for step, value in enumerate(values, 1)]
    lines += [{"step": 2, "time": 1.0, "loss": 0.25}, {"step": 2, "time": 1.0, "loss/eval": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def blue(path: Path) -> Any:
    """Returns where the picture has the colour of the first curve, bool ``[H, W]``."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.abs(pixels - [31, 119, 180]).sum(2) < 60


def test_the_curves_are_those_of_the_file(tmp_path: Path) -> None:
    metrics = save_metrics(tmp_path / "metrics.jsonl", [4.0, 3.0, float("nan"), 1.0])
    assert read_curves(metrics) == {"loss": {"loss": {1: 4.0, 2: 0.25, 4: 1.0}, "loss/eval": {2: 0.5}}}


def test_the_picture_shows_the_values(tmp_path: Path) -> None:
    """A curve that falls goes from the upper left to the lower right, and one that rises does not."""
    for name, values in {"falls": list(range(100, 0, -1)), "rises": list(range(100))}.items():
        curves = {"loss": {"loss": dict(enumerate(map(float, values)))}}
        draw_curves(curves, tmp_path / f"{name}.png", title=name)
        rows, columns = np.nonzero(blue(tmp_path / f"{name}.png"))
        left, right = rows[columns < np.median(columns)].mean(), rows[columns > np.median(columns)].mean()
        assert len(rows) > 200 and ((left < right) == (name == "falls"))


@pytest.mark.parametrize(("steps", "drawn"), [(5, False), (20, True)])
def test_a_run_draws_its_curves_unless_they_are_short(tmp_path: Path, steps: int, drawn: bool) -> None:
    settings = recipe("gan", tmp_path / "files", output_dir=str(tmp_path / "run"), epochs=100, train_iters=steps)
    assert run(get_config(settings)) == 0
    assert (tmp_path / "run" / "curves.png").exists() == drawn
    assert list((tmp_path / "run").glob(".curves*")) == []


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    settings = recipe("gan", tmp_path / "files", output_dir=str(tmp_path / "run"), epochs=100, train_iters=20)
    assert run(get_config(settings)) == 0
    assert "tracker curves could not finish" in capsys.readouterr().err
