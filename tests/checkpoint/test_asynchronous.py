"""Checkpoints that are written beside training: they are of their step, and keep every promise of the others."""

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from arctic_training import SFTTrainer, get_config
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.background import Staged
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.checkpoint.huggingface import HFCheckpointEngine
from arctic_training.distributed import process_group
from arctic_training.errors.types import CheckpointError, RecipeError
from arctic_training.testing.runs import first_difference
from tests import processes
from tests.contract.cases import recipe
from tests.faults.test_kills import losses, sums, written, zero
from tests.forked import Run
from tests.processes import HANG

Before = Callable[[int], None]


class Watched(DeepSpeedCheckpointEngine):
    """Calls ``before`` with the step of each checkpoint, in the thread that writes it."""

    name = "watched_for_the_test"
    before: ClassVar[Before] = staticmethod(lambda step: None)

    def stage(self, *args: Any) -> Staged:
        staged, step = super().stage(*args), self.trainer.progress.step

        def write() -> Sequence[str]:
            type(self).before(step)
            return staged.write()

        return Staged(write, staged.entries)


class WatchedTrainer(SFTTrainer):
    name = "watched_for_the_test"
    checkpoint_engine_type = (Watched, DeepSpeedCheckpointEngine, HFCheckpointEngine)


def train(
    folder: Path, *, before: Before = lambda step: None, at: dict[int, Callable[[], None]] | None = None, **keys: Any
) -> Path:
    """Trains five steps, and returns the folder of the checkpoints; ``at`` are calls after a step."""
    saved = {"type": Watched.name, "async": True, "save_every_n_steps": 2, **keys.pop("checkpoint", {})}
    process_group.init_process_group()
    if process_group.is_main():
        recipe("sft", folder.parent / "files")
    process_group.barrier()
    more = {"train_iters": 5, "output_dir": str(folder), "checkpoint": saved, **keys}
    config = recipe("sft", folder.parent / "files", **more)
    Watched.before = staticmethod(before)
    trainer = WatchedTrainer(get_config({**config, "type": WatchedTrainer.name}))
    for step, act in (at or {}).items():
        trainer.listen("post-after_update", partial(call_at, step, act))
    try:
        trainer.train()
    finally:
        trainer.close()
    return folder / "checkpoints" / Watched.name


def call_at(step: int, act: Callable[[], None], trainer: Any) -> None:
    if trainer.progress.step == step:
        act()


def content(folder: Path) -> dict[str, Any]:
    tensors = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    states = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    for name in states:
        if name.startswith("run_"):
            states[name].pop("metrics", None)
    return {**tensors, **states, "step": disk.read_manifest(folder)["step"]}


def beside(folder: str, stage: int) -> None:
    """The first save is written only when the run is two steps further."""
    root, go_on = Path(folder), threading.Event()
    more = {"deepspeed": {"zero_optimization": {"stage": stage}}, "micro_batch_size": 2 // process_group.world_size()}
    committed: list[bool] = []

    def wait(step: int) -> None:
        assert step != 2 or go_on.wait(HANG)

    def look() -> None:
        committed.append((root / "run" / "checkpoints" / Watched.name / "step_2").exists())
        go_on.set()

    saved = train(root / "run", before=wait, at={3: look}, **more)
    plain = train(root / "plain", checkpoint={"async": False}, **more)
    assert committed == [False]
    assert disk.list_steps(saved) == disk.list_steps(plain) == [2, 4]
    for step in (2, 4):
        assert disk.verify(disk.step_folder(saved, step)) is None
        one, other = (content(disk.step_folder(path, step)) for path in (saved, plain))
        assert len(one) == 3 * process_group.world_size() + 1 - (process_group.world_size() - 1) * (stage < 3)
        assert first_difference(one, other) == ""


@pytest.mark.parametrize(
    ("world", "stage"),
    [
        (1, 0),
        (2, 3),
        pytest.param(1, 1, marks=pytest.mark.nightly),
        pytest.param(2, 2, marks=pytest.mark.nightly),
    ],
)
def test_training_goes_on_and_the_checkpoint_is_of_its_step(world: int, stage: int, tmp_path: Path) -> None:
    processes.share(beside, world, str(tmp_path), stage)


def fail(*steps: int) -> Before:
    def before(step: int) -> None:
        if step in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return before


def test_a_full_disk_is_reported_and_the_run_goes_on_or_ends_as_configured(tmp_path: Path) -> None:
    root = train(tmp_path / "on", before=fail(2))
    assert disk.list_steps(root) == [4] and sorted(path.name for path in root.iterdir()) == ["latest", "step_4"]
    log = (tmp_path / "on" / "logs" / "rank_0.log").read_text()
    assert "cannot flush a checkpoint" in log and "No space left on device" in log and "the run continues" in log
    with pytest.raises(CheckpointError, match="cannot flush a checkpoint"):
        train(tmp_path / "stop", before=fail(2), checkpoint={"on_save_error": "stop"})
    lines = [json.loads(line) for line in (tmp_path / "stop" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] < 5


def test_the_end_saves_again_what_failed_and_is_waited_for(tmp_path: Path) -> None:
    seen: list[str] = []

    def before(step: int) -> None:
        seen.append(threading.current_thread().name)
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = train(tmp_path / "run", before=before, train_iters=4, checkpoint={"save_every_n_steps": 2})
    assert seen == ["save of step 2", "save of step 4"]  # the third is written by the training thread
    assert disk.list_steps(root) == [2, 4]


def test_a_save_waits_for_the_one_before_and_old_ones_are_removed(tmp_path: Path) -> None:
    order: list[tuple[str, int]] = []
    root = train(
        tmp_path / "run",
        before=lambda step: order.append(("written", step)),
        at={step: partial(order.append, ("trained", step)) for step in range(1, 6)},
        checkpoint={"save_every_n_steps": 1, "keep_last": 2},
    )
    written = [step for what, step in order if what == "written"]
    assert written == [1, 2, 3, 4, 5]
    assert disk.list_steps(root) == [4, 5] and disk.named_step(root) == 5
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


class Ended(Exception):
    pass


def test_an_error_of_the_run_leaves_the_save_complete(tmp_path: Path) -> None:
    ended = threading.Event()

    def end() -> None:
        ended.set()
        raise Ended

    with pytest.raises(Ended):
        train(tmp_path / "run", before=lambda step: ended.wait(HANG) and None, at={3: end})
    root = tmp_path / "run" / "checkpoints" / Watched.name
    # step 3 is saved too: an error between two steps
    assert disk.list_steps(root) == [2, 3] and all(disk.verify(disk.step_folder(root, n)) is None for n in (2, 3))


LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("model", "merged"), [({}, False), ({"peft_config": LORA}, False), ({"peft_config": LORA}, True)]
)
def test_an_export_beside_training_is_the_same(model: dict[str, Any], merged: bool, tmp_path: Path) -> None:
    folders = []
    for beside in (True, False):
        section = {"type": "huggingface", "async": beside, "save_every_n_steps": 2, "merge_adapter": merged}
        run = tmp_path / str(beside)
        config = recipe("sft", tmp_path / "files", output_dir=str(run), checkpoint=section, train_iters=3)
        config["model"] |= model
        trainer = SFTTrainer(get_config(config))
        trainer.train()
        trainer.close()
        folders.append(run / "checkpoints" / "huggingface" / "step_2")
    one, other = folders
    assert disk.verify(one) is None and disk.list_files(one) == disk.list_files(other)
    manifests = [disk.read_manifest(folder) for folder in folders]
    assert manifests[0].keys() == manifests[1].keys() >= {"type", "world", "run", "values", "roles", "progress"}
    for name in disk.list_files(one):
        if name.endswith(".safetensors"):
            assert first_difference(load_file(one / name), load_file(other / name)) == ""
        else:
            texts = [(folder / name).read_text("utf-8").replace(str(folder), "") for folder in folders]
            assert texts[0] == texts[1]


def test_a_type_that_stages_nothing_is_refused(tmp_path: Path) -> None:
    class Own(DeepSpeedCheckpointEngine):
        name = "writes_for_the_test"

        def write(self, *args: Any) -> Any:
            return super().write(*args)

    config = recipe("sft", tmp_path, checkpoint={"type": Own.name, "async": True}, skip_validation=True)
    with pytest.raises(RecipeError, match="async: type writes_for_the_test writes while training waits"):
        get_config(config)


DYING = """
import os, signal, time
from pathlib import Path
from arctic_training import SFTTrainer
from arctic_training.checkpoint.background import Staged
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine

class Dying(DeepSpeedCheckpointEngine):
    name = "dying"

    def stage(self, folder, engines, state):
        staged, step = super().stage(folder, engines, state), self.trainer.progress.step

        def write():
            last = os.environ.get("RANK", "0") == "{last}"
            if last and step == 4 and not Path("{flag}").exists():
                while self.trainer.progress.step == step:  # the run goes on, and ends meanwhile
                    time.sleep(0.001)
                Path("{flag}").touch()
                (folder / "model_{last}.pt").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return staged.write()

        return Staged(write, staged.entries)

class Trainer(SFTTrainer):
    name = "with_dying"
    checkpoint_engine_type = [Dying, DeepSpeedCheckpointEngine]
"""


@pytest.mark.fault(37)
@pytest.mark.parametrize("world", [1, 2])
def test_killed_while_it_is_written_beside_training(world: int, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(DYING.format(flag=tmp_path / "died", last=world - 1))

    def command(run: str) -> list[str]:
        more = {**zero(3), "type": "with_dying", "async": True}
        return [str(written("sft", tmp_path / "files", tmp_path / run, more, checkpoint="dying"))]

    with Run(command("run"), tmp_path / "log", world=world) as run:
        run.processes[-1].join(HANG)
        assert run.codes[-1] == -signal.SIGKILL, run.output()
    root = tmp_path / "run" / "checkpoints" / "dying"
    assert disk.named_step(root) == 2 and disk.list_steps(root) == [2]
    with Run(command("run"), tmp_path / "log", world=world) as run:
        assert run.wait(), run.output()
        assert not any(run.codes), run.output()
    with Run(command("whole"), tmp_path / "log", world=world) as run:
        assert run.wait(), run.output()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert sums(tmp_path / "run", "dying") == sums(tmp_path / "whole", "dying")
