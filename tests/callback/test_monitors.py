"""Callbacks that follow evaluations: when they act, on which metric, and what a resumed run knows."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training import get_config
from arctic_training.callback.early_stopping import EarlyStopping, EarlyStoppingConfig
from arctic_training.callback.reduce_lr import ReduceLROnPlateau, ReduceLROnPlateauConfig
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup
from arctic_training.testing import check_resume
from arctic_training.trainer.trainer import Trainer
from tests import processes
from tests.contract.cases import recipe

Values = st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=12)


class Evaluated:
    """The part of a trainer that a callback which follows evaluations uses."""

    def __init__(self) -> None:
        self.progress, self.stopped = SimpleNamespace(step=0), ""

    def stop(self, reason: str) -> None:
        self.stopped = self.stopped or f"{self.progress.step}: {reason}"


def evaluate(callback: Any, values: list[float]) -> str:
    """Returns where, and why, the callback has stopped a run of these losses."""
    run = Evaluated()
    callback.metric = "loss/eval"
    for value in values:
        run.progress.step += 1
        for _ in range(2):  # an evaluation of the same step counts once
            callback.post_evaluate(run, {"loss/eval": value})
    return run.stopped


@given(Values, st.integers(1, 4), st.sampled_from(["min", "max"]))
def test_patience_is_counted_from_the_first_best(values: list[float], patience: int, mode: str) -> None:
    signed = [value if mode == "min" else -value for value in values]
    since_best = [n - signed.index(min(signed[: n + 1])) for n in range(len(signed))]
    expected = next((n for n, waited in enumerate(since_best, 1) if waited >= patience), 0)
    config = EarlyStoppingConfig(type="early_stopping", patience=patience, mode=mode)  # type: ignore[arg-type]
    stopped = evaluate(EarlyStopping(config), values)
    assert stopped.partition(":")[0] == (str(expected) if expected else "")


@pytest.mark.parametrize(
    ("options", "values", "stopped"),
    [
        ({}, [1, math.nan], "2: early_stopping: loss/eval is nan"),
        ({"check_finite": False, "patience": 2}, [math.nan, math.nan, 1], "2: early_stopping: loss/eval has not been"),
        ({"check_finite": False, "patience": 2}, [math.nan, math.inf, 5, 4], ""),
        ({"check_finite": False}, [1, math.nan, 0.5], ""),
        ({"stopping_threshold": 0.5}, [1, 0.5], "2: early_stopping: loss/eval is 0.5, which reaches"),
        ({"stopping_threshold": 0.5, "mode": "max"}, [0.4, 0.6], "2: early_stopping: loss/eval is 0.6, which reaches"),
        ({"divergence_threshold": 3}, [1, 3, 3.5], "3: early_stopping: loss/eval is 3.5, which is beyond"),
        ({"min_delta": 0.2, "patience": 2}, [1, 0.9, 0.85, 0.5], "3: early_stopping: loss/eval has not been better"),
        ({"min_delta": 0.2, "patience": 2}, [1, 0.9, 0.75, 0.6], ""),
    ],
)
def test_when_it_stops(options: dict[str, Any], values: list[float], stopped: str) -> None:
    reason = evaluate(EarlyStopping(EarlyStoppingConfig(type="early_stopping", **options)), values)
    assert reason.startswith(stopped) and bool(reason) == bool(stopped)


@settings(max_examples=40, deadline=None)
@given(Values, st.integers(1, 3), st.integers(0, 3), st.sampled_from([0.0, 0.25]), st.sampled_from(["min", "max"]))
def test_the_plateau_is_that_of_torch(
    values: list[float], patience: int, cooldown: int, min_delta: float, mode: Any
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, 0.5, patience - 1, min_delta, "abs", cooldown, min_lr=0.2, eps=0
    )
    options: dict[str, Any] = {"patience": patience, "cooldown": cooldown, "min_delta": min_delta, "mode": mode}
    callback = ReduceLROnPlateau(ReduceLROnPlateauConfig(type="reduce_lr_on_plateau", factor=0.5, **options))
    run = Evaluated()
    callback.metric = "loss/eval"
    for value in values:
        run.progress.step += 1
        callback.post_evaluate(run, {"loss/eval": value})  # type: ignore[arg-type]
        oracle.step(value)
        assert max(callback.reduction.scale, 0.2) == optimizer.param_groups[0]["lr"]


def evaluated(folder: Path, **more: Any) -> dict[str, Any]:
    """A recipe that evaluates on its own training data after every step."""
    own = recipe("tensor_classifier", folder / "files", eval_interval=1, output_dir=str(folder / "run"), **more)
    own["data"]["eval_sources"] = own["data"]["sources"]
    return own


def trained(config: dict[str, Any]) -> Any:
    trainer: Any = lookup("trainer", config["type"])(get_config(config))  # type: ignore[call-arg]
    assert isinstance(trainer, Trainer)
    try:
        trainer.train()
    finally:
        trainer.close()
    return trainer


def test_a_run_that_learns_nothing_stops_and_stays_stopped(tmp_path: Path) -> None:
    stopping = {"type": "early_stopping", "patience": 2}
    saved = {"type": "deepspeed", "auto_resume": True}
    config = evaluated(tmp_path, optimizer={"lr": 0, "weight_decay": 0}, callbacks=[stopping], checkpoint=saved)
    trainer = trained(config)
    assert trainer.progress.step == 3
    assert "loss/eval has not been better for 2 evaluations; the best was" in trainer.stop_reason
    again = trained(config)
    assert again.progress.step == 3 and again.finished


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            {"type": "early_stopping", "monitor": "loss/evil"},
            "no evaluation measures loss/evil; did you mean 'loss/eval'",
        ),
        (
            {"type": "restore_best", "monitor": "acuracy/eval", "mode": "max"},
            "did you mean 'accuracy/eval'? there are: ",
        ),
        ({"type": "early_stopping", "monitor": "accuracy/eval"}, "mode: give min or max"),
        ({"type": "reduce_lr_on_plateau", "role": "critic"}, "'critic' is not trained here; there are: model"),
        ({"type": "loss_spike", "action": "back"}, "loss_spike goes back, and no checkpoint is saved during the run"),
        ({"type": "memory_profiler"}, "records the memory of a GPU, and this run is on cpu; use the callback profiler"),
        ({"type": "learning_rate_finder", "min_lr": 1}, "max_lr: 1 must be above min_lr: 1"),
        (
            {"type": "visualization"},
            "callbacks.visualization: the trainer tensor_classifier has no method sample(count)",
        ),
    ],
)
def test_refusals(tmp_path: Path, callback: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        trained(evaluated(tmp_path, callbacks=[callback]))
    assert message in str(error.value)


def test_a_run_without_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="eval_interval: 0, and the callback early_stopping follows the evaluations"):
        get_config(evaluated(tmp_path, callbacks=["early_stopping"]) | {"eval_interval": 0})


def test_the_memory_profiler_of_arctic_training_is_the_callback(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"callbacks\.memory_profiler records the memory of a GPU"):
        trained(evaluated(tmp_path, mem_profiler="step"))


ALL = [
    {"type": "learning_rate_finder", "steps": 10, "use": True},
    {"type": "early_stopping", "patience": 7},
    {"type": "restore_best"},
    {"type": "reduce_lr_on_plateau", "patience": 1, "factor": 0.3, "min_delta": 0.05, "min_lr": 1e-5},
    {"type": "reduce_lr_on_instability", "window": 2, "threshold": 1, "min_delta": 0.01, "cooldown": 1},
    {"type": "loss_spike", "window": 3, "threshold": 1.5, "min_delta": 0.01},
    {"type": "profiler", "start": 1, "steps": 1},
]


def interrupted(folder: str, stage: int) -> int:
    config = evaluated(Path(folder), callbacks=ALL, deepspeed={"zero_optimization": {"stage": stage}})
    return check_resume({**config, "micro_batch_size": 2}, steps=8)


@pytest.mark.fault(2)
@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
def test_all_of_them_resume_to_the_bit(world: int, stage: int, tmp_path: Path) -> None:
    assert processes.share(interrupted, world, str(tmp_path), stage) == [2] * world


def test_the_lowered_learning_rate_is_logged(tmp_path: Path) -> None:
    plateau = {"type": "reduce_lr_on_plateau", "patience": 1, "factor": 0.5, "min_lr": 3e-4}
    more: dict[str, Any] = {"optimizer": {"lr": 1e-3}, "scheduler": {"type": "constant"}, "train_iters": 5}
    trained(evaluated(tmp_path, callbacks=[{**plateau, "min_delta": 100}], **more))
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    lrs = [line["lr"] for line in lines if "lr" in line]
    assert lrs[1:] == [1e-3, 5e-4, 3e-4, 3e-4] and lrs[0] in (0.0, 1e-3)
