"""What a checkpoint holds, what it refuses, and that reading one runs nothing."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointConfig, DeepSpeedCheckpointEngine
from arctic_training.checkpoint.folder import fsync_and_hash
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.snapshot import fragments, require_plain, snapshot
from arctic_training.errors.types import ArcticError, CheckpointError, RecipeError, ResumeError
from arctic_training.state import Progress, RunState
from tests import processes
from tests.checkpoint import elastic
from tests.engine import small


def saver(folder: Path, update: int = 0, **parts: Any) -> tuple[DeepSpeedCheckpointEngine, RunState]:
    view, state = small.run_of(folder, Progress(step=update))
    return DeepSpeedCheckpointEngine(view, DeepSpeedCheckpointConfig(output_dir=folder))(), RunState(state | parts)


class Part:
    def __init__(self, held: Any = None) -> None:
        self.held = held

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.held = state["held"]


class Planted:
    """Leaves a file behind when it is unpickled the usual way."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.at),)


def two_engines(folder: Path) -> list[str]:
    """Two trained networks in one checkpoint; parts of the run; and the refusals, at stage 1."""
    process_group.init_process_group()
    engines = {"model": small.make(1, seed=1), "critic": small.make(1, seed=2)}
    for engine in engines.values():
        small.window(engine, 0, 1, 1)
    saved = {role: small.everything(engine) for role, engine in engines.items()}
    checkpointer, state = saver(folder, 3, part=Part({"list": [1, 2.5, "x", None], "tensor": torch.arange(3)}))
    checkpointer.save(engines, state)
    fresh = {"model": small.make(1, seed=8), "critic": small.make(1, seed=9)}
    part = Part()
    checkpointer, state = saver(folder, 0, part=part)
    checkpointer.load(fresh, state)
    wrong = [f"{role}: {small.differing(saved[role], small.everything(fresh[role]))}" for role in engines]
    wrong = [line for line in wrong if not line.endswith("[]")]
    if part.held["list"] != [1, 2.5, "x", None] or part.held["tensor"].tolist() != [0, 1, 2]:
        wrong.append(f"part {part.held}")

    before = small.everything(fresh["model"])
    refusals: list[tuple[str, dict[str, TrainedEngine], dict[str, Any]]] = [
        ("have different trained models: critic", {"model": fresh["model"]}, {"part": Part()}),
        ("holds part, which the run lacks", fresh, {}),
        ("lacks other, which the run has", fresh, {"part": Part(), "other": Part()}),
        (
            "parameters: embed.bias, embed.weight, first.bias and",
            {**fresh, "critic": elastic.make(1)},
            {"part": Part()},
        ),
        ("optimizer: saved AdamW, now SGD", {**fresh, "critic": elastic.make(1, "sgd")}, {"part": Part()}),
        ("dtype: saved float32, now bfloat16", {**fresh, "critic": small.make(2, "bf16")}, {"part": Part()}),
        ("dtype: saved float32, now bfloat16", {**fresh, "critic": small.make(1, "bf16")}, {"part": Part()}),
    ]
    for says, problem, parts in refusals:
        small.window(fresh["model"], 5, 1, 1)
        before = small.everything(fresh["model"])
        checkpointer, state = saver(folder, 0, **parts)
        try:
            checkpointer.load(problem, state)
            wrong.append(f"not refused: {says}")
        except ResumeError as error:
            if says not in str(error):
                wrong.append(f"{says!r} is not in {str(error)!r}")
        if small.differing(before, small.everything(fresh["model"])):
            wrong.append(f"half loaded: {says}")
    return wrong


def test_two_networks_in_one_checkpoint_and_what_is_refused(tmp_path: Path) -> None:
    assert processes.share(two_engines, 1, tmp_path) == [[]]


def save_one(folder: Path) -> None:
    process_group.init_process_group()
    engine = small.make(0)
    small.window(engine, 0, 1, 1)
    checkpointer, state = saver(folder, 1)
    checkpointer.save({"model": engine}, state)


def load_one(folder: Path) -> str:
    process_group.init_process_group()
    checkpointer, state = saver(folder)
    try:
        checkpointer.load({"model": small.make(0)}, state)
    except ArcticError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


@pytest.mark.fault(20)
@pytest.mark.parametrize("name", ["run_0.pt", "model_0.pt", "model.safetensors"])
def test_a_planted_pickle_does_not_run(tmp_path: Path, name: str) -> None:
    """Even when the one who planted it wrote a manifest that fits."""
    import json

    processes.share(save_one, 1, tmp_path)
    folder, marker = tmp_path / "step_1", tmp_path / "ran"
    torch.save({"layout": Planted(marker)}, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] |= fsync_and_hash(folder, [name])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (message,) = processes.share(load_one, 1, tmp_path)
    assert message.startswith("ResumeError")
    assert name in message
    assert not marker.exists()


def test_a_rank_that_lacks_its_file_stops_all(tmp_path: Path) -> None:
    processes.share(save_one, 2, tmp_path)
    (tmp_path / "step_1" / "model_1.pt").unlink()
    assert [message.split(":")[0] for message in processes.share(load_one, 2, tmp_path)] == ["ResumeError"] * 2
    shutil.rmtree(tmp_path / "step_1")


def test_what_only_a_pickle_could_hold_is_refused_when_saving() -> None:
    require_plain({"a": [1, (2.0, None)], "b": {"c": torch.zeros(1), 3: "x"}}, "state")
    with pytest.raises(CheckpointError, match=r"state\.a\[1\] is a set"):
        require_plain({"a": [1, {2}]}, "state")
    with pytest.raises(CheckpointError, match="a key of state is a PosixPath"):
        require_plain({Path("x"): 1}, "state")


@pytest.mark.parametrize(
    "zero", [{"offload_param": {"device": "nvme", "nvme_path": "/x"}}, {"zero_hpz_partition_size": 2}]
)
def test_what_cannot_be_saved_exactly_is_refused_at_the_start(tmp_path: Path, zero: dict[str, Any]) -> None:
    view, _ = small.run_of(tmp_path, Progress())
    view.config = small.recipe(zero_optimization={"stage": 3, **zero})
    with pytest.raises(RecipeError, match=next(iter(zero))):
        DeepSpeedCheckpointEngine(view, DeepSpeedCheckpointConfig(output_dir=tmp_path)).dry_run({})


def test_a_run_that_remembers_what_no_file_can_hold_is_refused_at_the_start(tmp_path: Path) -> None:
    class Remembers:
        def state_dict(self) -> dict[str, Any]:
            return {"seen": {1, 2}}

        def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...

    view, _ = small.run_of(tmp_path, Progress())
    engine = DeepSpeedCheckpointEngine(view, DeepSpeedCheckpointConfig(output_dir=tmp_path))
    engine.check_state(RunState(progress=Progress()))
    with pytest.raises(RecipeError, match=r"cannot save this run: the run's state\.callback\.mine\.seen is a set"):
        engine.check_state(RunState({"callback.mine": Remembers()}))


def put_together(stage: int, dtype: str) -> list[str]:
    """The fragments of all processes make up every trained parameter, once, in the values it has."""
    from deepspeed.utils import safe_get_full_fp32_param

    engine = small.make(stage, dtype)
    small.window(engine, 0, 1, 1)
    state = snapshot(engine)
    named = dict(engine.module.named_parameters())
    tensors = state["shadows"] or [named[held[0][0]].detach() for held in fragments(engine)]
    mine = [
        (name, start, tensor.flatten()[at : at + size].clone())
        for tensor, held in zip(tensors, fragments(engine), strict=True)
        for name, start, at, size in held
    ]
    wrong = []
    every = [one for part in collectives.all_gather_object(mine) for one in part]
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)
        total, times = torch.zeros(shape.numel() + 64), torch.zeros(shape.numel() + 64)
        for _, start, part in (one for one in every if one[0] == name):
            total[start : start + len(part)] = part
            times[start : start + len(part)] += 1
        copies = process_group.world_size() if stage == 0 else 1
        expected = safe_get_full_fp32_param(parameter) if stage else None
        if expected is None:
            expected = parameter.detach().float()
        close = torch.allclose(total[: shape.numel()].view(shape), expected, atol=0 if stage else 1e-2)
        if not close or not bool((times[: shape.numel()] == copies).all()):
            wrong.append(f"stage {stage}, {dtype}: {name}")
    engine.destroy()
    return wrong


def all_together() -> list[str]:
    process_group.init_process_group()
    return [line for stage in small.STAGES for dtype in ("fp32", "bf16") for line in put_together(stage, dtype)]


@pytest.mark.parametrize("world", [1, 2])
def test_the_shares_make_up_the_whole(world: int) -> None:
    assert processes.share(all_together, world) == [[]] * world
