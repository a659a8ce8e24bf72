"""Whatever ends a run, what was to be saved is saved, its exit code is true, and a restart does what remains.

The table of docs/checkpoints.md, as a closed form of recipe and end that knows nothing of the loop.
"""

import gc
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from arctic_training import Checkpointer, GANTrainer, get_config
from arctic_training.callback.time_limit import STOPPED_EARLY
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine
from arctic_training.launch.worker import run
from arctic_training.state import RunState
from tests.contract.cases import recipe

ROWS = 20
GOOD = ("epochs", "train_iters", "exit_iteration", "exit_iteration_this_run", "stop", "late stop", "early stop")
ASKED = {"SIGTERM": 143, "SIGINT": 130, "time": STOPPED_EARLY, "kill switch": 0}
FAILED = {"error": 1, "nan": 3, "interrupt": 130}
BETWEEN = {"error between updates": 1}


class Export(Checkpointer[CheckpointConfig]):
    """Nothing that a run can go on from."""

    name = "export_for_the_table"

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> None:
        (folder / "update.txt").write_text(str(self.trainer.progress.step))


class Ended(GANTrainer):
    """Ends as `end` says, in update ``at``."""

    name = "ended_for_the_table"
    checkpoint_engine_type = [DeepSpeedCheckpointEngine, Export]
    end, at = "", 0

    def step(self, batch: Any) -> None:
        super().step(batch)
        if self.progress.step + 1 == self.at and self.window.index == 0:
            self.happen()

    def happen(self) -> None:
        if self.end == "error":
            raise RuntimeError("on purpose")
        if self.end == "interrupt":
            raise KeyboardInterrupt
        if self.end.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.end))
        if self.end in ("time", "kill switch"):
            self.request_stop("it is time", ASKED[self.end])
        if self.end == "stop":  # in the middle of the window
            self.stop("seen enough")

    def loss(self, batch: Any) -> torch.Tensor:
        spoilt = self.end == "nan" and self.progress.step + 1 == self.at
        return super().loss(batch) * (float("nan") if spoilt else 1)

    def after_update(self) -> None:
        super().after_update()
        if self.end == "late stop" and self.progress.step == self.at:  # when the update is saved already
            self.stop("seen enough")
        if self.end in BETWEEN and self.progress.step == self.at:
            raise RuntimeError("on purpose")

    def pre_train_callback(self) -> None:
        if self.end == "early stop":
            self.stop("seen enough")


@dataclass
class Case:
    end: str
    at: int = 1
    epochs: int = 2
    accumulate: int = 1
    deepspeed: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)

    @property
    def per_epoch(self) -> int:
        return -(-(ROWS // 4) // self.accumulate)

    @property
    def plan(self) -> int:
        """Returns the step after which nothing is left to train."""
        plan = self.epochs * self.per_epoch
        if self.end in ("train_iters", "exit_iteration"):
            plan = self.at if self.end == "train_iters" else min(plan, self.at)
        return plan

    @property
    def last(self) -> int:
        """The update at which the first start ends."""
        if self.end in ASKED:  # the next window is the last
            return min(self.at + 1, self.plan) if self.at <= self.plan else self.plan
        if self.end in FAILED:
            return min(self.at - 1, self.plan)
        if self.end == "early stop":
            return 0
        return self.plan if self.end == "epochs" else min(self.at, self.plan)

    @property
    def happened(self) -> bool:
        return self.at <= self.plan or self.end == "early stop"

    @property
    def code(self) -> int:
        return (ASKED | FAILED | BETWEEN).get(self.end, 0) if self.happened else 0

    def saved(self, section: dict[str, Any], *, resumable: bool) -> set[int]:
        steps, epochs = section.get("save_every_n_steps", 0), section.get("save_every_n_epochs", 0)
        saved = {n for n in range(1, self.last + 1) if steps and n % steps == 0}
        # an error comes before the end of an epoch is saved as one, with which a restart begins
        ends = (self.last - (self.end in BETWEEN and self.happened)) // self.per_epoch
        saved |= {n * self.per_epoch for n in range(1, ends + 1) if epochs and n % epochs == 0}
        broken = self.end in FAILED and self.happened
        short = self.end in {*ASKED, *BETWEEN} or self.end.endswith("stop")
        cut = self.last < self.plan or (self.happened and short)
        if not broken and (section.get("save_end_of_training") or (resumable and cut)):
            saved.add(self.last)
        return saved

    def recipe(self, root: Path) -> dict[str, Any]:
        limit = {self.end: self.at} if self.end in GOOD[1:4] else {}
        settings = recipe("gan", root.parent / "files", output_dir=str(root), epochs=self.epochs, **limit)
        sections = [
            {"type": "deepspeed", "auto_resume": True, **self.deepspeed},
            {"type": Export.name, **self.export},
        ]
        return settings | {
            "type": Ended.name,
            "callbacks": [],
            "gradient_accumulation_steps": self.accumulate,
            "checkpoint": sections,
            "logger": {"level": "CRITICAL"},
        }


KEYS = st.fixed_dictionaries(
    {},
    optional={
        "save_every_n_steps": st.integers(1, 4),
        "save_every_n_epochs": st.integers(1, 3),
        "save_end_of_training": st.booleans(),
    },
)
CASES = st.builds(
    Case,
    end=st.sampled_from([*GOOD, *ASKED, *FAILED, *BETWEEN]),
    at=st.integers(1, 8),
    epochs=st.integers(1, 3),
    accumulate=st.sampled_from([1, 2]),
    deepspeed=KEYS,
    export=KEYS,
)


@pytest.fixture(scope="module", autouse=True)
def own_environment() -> Iterator[None]:
    """Restores the environment that a run sets, and keeps its end from searching for garbage what DeepSpeed imports."""
    before = dict(os.environ)
    process_group.init_process_group()
    process_group.destroy_process_group()
    gc.freeze()
    yield
    os.environ.clear()
    os.environ.update(before)


def steps(root: Path, name: str) -> set[int]:
    return set(disk.list_steps(root / "checkpoints" / name))


def trained(root: Path) -> list[int]:
    """The updates that were trained, in their order, over all starts of the run."""
    path = root / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def train(case: Case, root: Path, monkeypatch: pytest.MonkeyPatch, end: str, **more: Any) -> int:
    monkeypatch.setattr(Ended, "end", end)
    monkeypatch.setattr(Ended, "at", case.at)
    return run(get_config(case.recipe(root) | more))


@pytest.mark.fault(2, 11, 14, 35)
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=CASES)
@example(case=Case("epochs", 1, 3, 2, {"save_every_n_epochs": 2, "save_end_of_training": True}))
@example(case=Case("SIGTERM", 4, 2, 1, {"save_every_n_epochs": 2}))
@example(case=Case("stop", 5, 2, 1, {"save_every_n_epochs": 2}))
@example(case=Case("stop", 2, 2, 2, {"save_every_n_epochs": 2}))
@example(case=Case("late stop", 4, 2, 1, {"save_every_n_steps": 2}, {"save_every_n_steps": 2}))
@example(case=Case("exit_iteration_this_run", 2, 1, 1, {"save_every_n_steps": 4}))
@example(case=Case("time", 5, 1, 1))
@example(case=Case("error between updates", 5, 2, 1, {"save_every_n_epochs": 1}, {"save_end_of_training": True}))
def test_every_end_saves_what_the_table_says(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    root = tmp_path_factory.getbasetemp() / "table" / "run"
    shutil.rmtree(root, ignore_errors=True)
    assert train(case, root, monkeypatch, case.end) == case.code
    assert trained(root) == list(range(1, case.last + 1))
    kept, exports = steps(root, "deepspeed"), steps(root, Export.name)
    assert kept == case.saved(case.deepspeed, resumable=True)
    assert exports == case.saved(case.export, resumable=False)
    stopped = case.end.endswith("stop") and case.happened
    if case.code and case.end in ASKED:
        assert case.last in kept  # saved in good order, as the code says
    # what the first start has written is not written again by one that has nothing to train
    before = {path: path.stat().st_ino for path in root.glob("checkpoints/*/step_*/*")}
    (log := root / "logs" / "rank_0.log").write_text("")
    assert train(case, root, monkeypatch, case.end if stopped else "") == 0
    idle = len(trained(root)) == case.last
    assert ("nothing was trained" in log.read_text()) == idle and ("seen enough" in log.read_text()) == stopped
    while case.end == "exit_iteration_this_run" and max(trained(root)) < case.plan:
        assert train(case, root, monkeypatch, "") == 0
    if stopped:
        assert trained(root) == list(range(1, case.last + 1)) and (steps(root, "deepspeed")) == kept
        manifest = disk.read_manifest(root / "checkpoints" / "deepspeed" / f"step_{case.last}")
        assert manifest["stopped"] == "seen enough"
    else:
        newest = max(kept, default=0)
        assert trained(root) == [*range(1, case.last + 1), *range(newest + 1, case.plan + 1)]  # no update is lost
    assert all(path.stat().st_ino == before[path] for path in before if f"step_{max(kept, default=0)}" in path.parts)
