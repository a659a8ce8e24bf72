"""What looks at a run and leaves it alone: the profiler, the learning rate finder, pictures of samples."""

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from arctic_training import get_config
from arctic_training.callback.learning_rate_finder import suggest
from arctic_training.callback.visualization import plot_of
from arctic_training.registry import lookup
from tests.contract.cases import recipe


def train(folder: Path, case: str, callbacks: list[Any], **more: Any) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Returns what a run logged, times apart, and its weights."""
    config = recipe(case, folder.parent / "files", callbacks=callbacks, output_dir=str(folder), **more)
    trainer: Any = lookup("trainer", case)(get_config(config))  # type: ignore[call-arg]
    trainer.train()
    weights = torch.cat([one.detach().flatten() for one in trainer.model.module.parameters()])
    trainer.close()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {name: one for name, one in line.items() if name in ("step", "loss", "lr", "grad_norm")} for line in lines
    ], weights


def test_the_run_is_the_same_with_all_of_them(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "tensor_classifier", [])
    finder = {"type": "learning_rate_finder", "steps": 12, "max_lr": 10}
    profiler = {"type": "profiler", "start": 2, "steps": 2, "memory": True}
    watched = train(tmp_path / "watched", "tensor_classifier", [finder, profiler])
    assert watched[0] == plain[0] and torch.equal(watched[1], plain[1])
    trace = json.loads(gzip.decompress((tmp_path / "watched" / "profile" / "step_3_rank_0.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::addmm") == 2 * 2  # two layers in each of two steps
    table = (tmp_path / "watched" / "profile" / "step_3_rank_0.txt").read_text()
    assert "aten::addmm" in table and "CPU Mem" in table
    with open(tmp_path / "watched" / "samples" / "learning_rate_finder" / "curve.csv") as file:
        rows = list(csv.DictReader(file))
    lrs = [float(row["lr"]) for row in rows]
    assert lrs[0] == 1e-7 and len(lrs) > 5
    assert np.allclose(np.diff(np.log(lrs)), (math.log(10) - math.log(1e-7)) / 11)
    assert float(rows[0]["loss"]) == plain[0][0]["loss"]  # both are of the first window before any step
    assert picture(tmp_path / "watched" / "samples" / "learning_rate_finder" / "step_0.png").shape == (480, 640, 3)


def test_the_suggestion_is_the_peak_of_the_schedule(tmp_path: Path) -> None:
    finder = {"type": "learning_rate_finder", "steps": 15, "use": True, "min_lr": 1e-5}
    constant = {"scheduler": {"type": "constant", "warmup_ratio": 0}, "train_iters": 3}
    records, _ = train(tmp_path / "run", "tensor_classifier", [finder], **constant)
    with open(tmp_path / "run" / "samples" / "learning_rate_finder" / "curve.csv") as file:
        curve = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    suggestion = suggest([lr for lr, _ in curve], [loss for _, loss in curve])
    assert suggestion > 0
    assert [record["lr"] for record in records] == pytest.approx([suggestion] * 3)


@given(st.floats(-5, -1), st.floats(0.5, 3))
def test_the_suggestion_is_where_the_loss_falls_fastest(place: float, depth: float) -> None:
    lrs = np.logspace(-7, 1, 400)
    falling = depth / (1 + np.exp(-8 * (np.log10(lrs) - place)))
    losses = 5 - falling + np.exp(20 * (np.log10(lrs) - place - 1.5)).clip(max=50)
    # the exponential mean lags behind by some ten steps of a fiftieth of a decade
    assert abs(math.log10(suggest([*map(float, lrs)], [*map(float, losses)])) - place) < 0.4


def test_no_suggestion_where_the_loss_only_rises() -> None:
    lrs = [float(lr) for lr in np.logspace(-7, 1, 50)]
    assert suggest(lrs, [1.0 + n for n in range(50)]) == 0
    assert suggest(lrs[:2], [1.0, 0.5]) == 0
    assert suggest(lrs, [1.0, math.nan, *[0.0] * 48]) == 0


def picture(path: Path) -> "np.ndarray[Any, Any]":
    return np.array(Image.open(path))


def test_points_are_drawn(tmp_path: Path) -> None:
    plots = [
        {"type": "visualization", "every": 2, "count": 50, "plot": plot} for plot in ("auto", "curves", "histogram")
    ]
    records, _ = train(tmp_path / "run", "gan", plots, train_iters=2)
    for name in ("visualization", "visualization#2", "visualization#3"):
        drawn = picture(tmp_path / "run" / "samples" / name / "step_2.png")
        assert drawn.shape == (480, 640, 3)
        assert 0.0005 < (drawn[60:420, 80:600] != 255).any(2).mean() < 0.9  # neither nothing nor everything
    assert len(records) == 2


@pytest.mark.parametrize(
    ("shape", "plot"),
    [((5, 2), "scatter"), ((5,), "histogram"), ((5, 1), "histogram"), ((5, 9), "curves"), ((5, 8, 8), "images"),
     ((5, 3, 8, 8), "images"), ((5, 2, 8, 8), "curves")],
)  # fmt: skip
def test_the_plot_follows_the_shape(shape: tuple[int, ...], plot: str) -> None:
    assert plot_of(shape[1:]) == plot
