"""Which checkpoints stay, and that a complete one always does."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training import get_config
from arctic_training.checkpoint import disk_space, retention
from arctic_training.checkpoint import folder as disk
from arctic_training.errors.types import InputError, RecipeError
from arctic_training.state import RunState
from arctic_training.trainer.session import Session
from tests import processes
from tests.checkpoint.test_folder import Notes, kills, notes, resumed, save
from tests.contract.cases import recipe
from tests.engine import small

pytestmark = pytest.mark.fault(28)


def make(root: Path, step: int, loss: float | None = None, *, complete: bool = True) -> None:
    folder = root / f"step_{step}"
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = {"format": disk.FORMAT, "step": step, "files": {"a": {"size": 1, "sha256": ""}}}
    manifest["values"] = {} if loss is None else {"loss/eval": loss}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "a").write_text("1" if complete else "")


MEASURED = st.none() | st.floats(0, 3, allow_nan=False).map(lambda value: round(value, 1)) | st.just(float("nan"))


@given(
    checkpoints=st.dictionaries(st.integers(1, 400), st.tuples(MEASURED, st.booleans()), min_size=1, max_size=8),
    keep=st.integers(0, 3),
    every=st.sampled_from([0, 0, 1, 10, 50]),
    count=st.integers(0, 3),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_newest_the_best_and_every_so_many_stay(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[int, Any], keep: int, every: int, count: int, mode: str
) -> None:
    root = tmp_path_factory.mktemp("retention")
    for step, (loss, complete) in checkpoints.items():
        make(root, step, loss, complete=complete)
    steps = sorted(step for step, (_, complete) in checkpoints.items() if complete)
    assert retention.complete_steps(root) == steps
    best = retention.best(root, "loss/eval", mode, count)
    worth = {
        step: checkpoints[step][0]
        for step in steps
        if checkpoints[step][0] is not None and checkpoints[step][0] == checkpoints[step][0]
    }
    sign = 1 if mode == "min" else -1
    assert len(best) == min(count, len(worth))
    assert all(sign * worth[one] <= sign * worth[other] for one in best for other in worth.keys() - {*best})
    removed = retention.prune(root, keep, every=every, protected=best)
    left = disk.list_steps(root)
    broken = {step for step, (_, complete) in checkpoints.items() if not complete}
    must = {*steps[-keep:], *best, *(step for step in steps if every and step % every == 0)} if keep else {*steps}
    assert {*left} == must | broken
    assert {*removed} == checkpoints.keys() - {*left}
    assert not steps or retention.complete_steps(root)  # there is a whole one, as there was
    shutil.rmtree(root)


def test_a_damaged_newest_is_not_the_one_that_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    (tmp_path / "step_3" / "one.txt").write_text("short")
    assert retention.prune(tmp_path, 1) == [1]
    assert resumed(tmp_path) == 2


def test_what_a_later_version_wrote_is_not_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = tmp_path / "step_1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": disk.FORMAT + 1}))
    save(tmp_path, 2, 3, keep_last=1)
    assert disk.list_steps(tmp_path) == [1, 3]


KEPT = {"keep_last": 1, "keep_best": 1}


def train(root: Path, losses: dict[int, float], **section: Any) -> Notes:
    """Save at every one of these updates, after an evaluation that gave that loss."""
    engine = notes(root, **section)
    engine.trainer.eval_loaders = {"eval": None}  # type: ignore[misc]
    for update, loss in losses.items():
        engine.trainer.progress.step = update
        engine.record_metrics({"loss/eval": loss})
        engine.save({}, RunState())
    return engine


def test_the_best_stays_over_resumes_and_is_named(tmp_path: Path) -> None:
    train(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0}, **KEPT)
    assert disk.list_steps(tmp_path) == [2, 3]
    train(tmp_path, {4: 1.5, 5: 2.5}, **KEPT)  # another start of the run
    assert disk.list_steps(tmp_path) == [2, 5]
    assert (tmp_path / "best").read_text() == "step_2\n"
    train(tmp_path, {6: 0.5, 7: 0.7, 8: 0.8}, **KEPT)
    assert disk.list_steps(tmp_path) == [6, 8]
    assert (tmp_path / "best").read_text() == "step_6\n"
    assert resumed(tmp_path) == 8
    train(tmp_path, {9: 0.9, 10: 0.6}, **KEPT, best_mode="max")
    assert disk.list_steps(tmp_path) == [9, 10]


def test_the_best_of_another_run_is_not_the_best_of_this_one(tmp_path: Path) -> None:
    train(tmp_path, {9: 0.1})
    train(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0}, **KEPT)
    assert disk.list_steps(tmp_path) == [2, 3, 9]
    assert (tmp_path / "best").read_text() == "step_2\n"


def test_what_is_measured_after_the_save_counts_too(tmp_path: Path) -> None:
    engine = train(tmp_path, {1: 2.0, 2: 3.0}, **KEPT)
    engine.trainer.progress.step = 3
    engine.save({}, RunState())
    engine.record_metrics({"loss/eval": 1.0})
    assert (tmp_path / "best").read_text() == "step_3\n"
    assert disk.list_steps(tmp_path) == [3]
    assert disk.verify(tmp_path / "step_3") is None


def test_a_checkpoint_that_was_not_measured_is_told_once(tmp_path: Path, messages: list[str]) -> None:
    engine = train(tmp_path, {1: 2.0}, **KEPT)
    for update in (2, 3):
        engine.trainer.progress.step = update
        engine.save({}, RunState())
    assert [line for line in messages if "loss/eval" in line] == [
        "the checkpoint of step 2 has no loss/eval, so it cannot be the best: save at steps with an evaluation"
    ]
    assert disk.list_steps(tmp_path) == [1, 3]


def test_a_metric_that_no_evaluation_has_is_told_once_with_those_that_it_has(
    tmp_path: Path, messages: list[str]
) -> None:
    engine = train(tmp_path, {1: 2.0}, **KEPT, best_metric="exactmatch/eval")
    for update in (2, 3):
        engine.trainer.progress.step = update
        engine.record_metrics({"loss/eval": 1.0, "exact_match/eval": 0.5})
        engine.save({}, RunState())
    assert [line for line in messages if "exactmatch/eval" in line] == [
        "the evaluation after step 1 measured loss/eval, but not exactmatch/eval, by which checkpoint.keep_best chooses"
    ]


def test_a_kill_at_any_file_operation_leaves_the_best_and_a_newest(tmp_path: Path) -> None:
    root = tmp_path / "run"
    train(root, {1: 1.0, 2: 2.0}, **KEPT)

    def check() -> None:
        assert 1 in retention.complete_steps(root) and resumed(root) in (2, 3)

    assert kills(root, lambda: train(root, {3: 3.0}, **KEPT), check) >= 15


def test_a_kill_while_a_value_is_noted_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    root = tmp_path / "run"
    save(root, 1)

    def note() -> None:
        engine = notes(root, update=1)
        engine._last_saved = 1
        engine.record_metrics({"loss/eval": 1.0})

    assert kills(root, note, lambda: resumed(root) == 1 or pytest.fail("damaged")) >= 3


@pytest.mark.parametrize(
    ("section", "more", "says"),
    [
        ({"keep_best": 1}, {}, "checkpoint.keep_best: without keep_last all checkpoints are kept"),
        ({"keep_every": 5}, {}, "checkpoint.keep_every: without keep_last all checkpoints are kept"),
        ({"keep_last": 1, "best_metric": "x"}, {}, "checkpoint.best_metric: without keep_best it has no effect"),
        (
            {"keep_last": 1, "save_every_n_steps": 0},
            {},
            "keep_last: no checkpoint is saved; give save_every_n_steps or save_every_n_epochs",
        ),
        (KEPT, {}, "eval_interval: 0, and the checkpoint section has keep_best, which needs evaluations"),
    ],
)
def test_what_would_keep_nothing_is_refused(tmp_path: Path, section: Any, more: Any, says: str) -> None:
    settings = recipe("sft", tmp_path, checkpoint={"type": "deepspeed", "save_every_n_steps": 1, **section}, **more)
    with pytest.raises(RecipeError, match=says):
        get_config(settings)


def test_sections_that_would_remove_each_others_are_refused(tmp_path: Path) -> None:
    one = {"type": "deepspeed", "save_every_n_steps": 1}
    settings = recipe("sft", tmp_path, checkpoint=[one, {**one, "keep_last": 2}])
    with pytest.raises(RecipeError, match="two sections save in one folder, deepspeed"):
        get_config(settings)
    get_config({**settings, "checkpoint": [one, {**one, "output_dir": str(tmp_path / "other")}]})
    # the folder that the other section has by default, and that by another name
    saves, run = tmp_path / "run" / "checkpoints", str(tmp_path / "run")
    (tmp_path / "link").symlink_to(saves)
    for place in (saves / "deepspeed", tmp_path / "link" / "deepspeed"):
        exports = {"type": "huggingface", "output_dir": str(place)}
        session = Session(get_config({**settings, "output_dir": run, "checkpoint": [one, exports]}))
        with pytest.raises(InputError, match=f"two sections save in one folder, {saves / 'deepspeed'}; give one"):
            session.acquire_locks()
        assert not Path(run).exists()


def whole_run(settings: dict[str, Any]) -> dict[str, float]:
    """The loss on the evaluation set after each update."""
    from arctic_training.registry import lookup

    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()
    trainer.close()
    lines = [json.loads(line) for line in (Path(settings["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    return {f"step_{line['step']}": line["loss/eval"] for line in lines if "loss/eval" in line}


def test_a_run_keeps_its_best_and_a_resumed_one_too(tmp_path: Path) -> None:
    section = {"type": "deepspeed", "save_every_n_steps": 1, "auto_resume": True, **KEPT, "best_mode": "max"}
    settings = recipe("sft", tmp_path / "files", output_dir=str(tmp_path / "run"), checkpoint=section, eval_interval=1)
    settings["data"]["train_eval_split"] = [0.8, 0.2]
    first = processes.share(whole_run, 1, settings | {"exit_iteration": 4})[0]
    losses = processes.share(whole_run, 1, settings)[0]  # the whole file, so that of both starts
    assert first.keys() < losses.keys() and len(losses) == 8
    saved = tmp_path / "run" / "checkpoints" / "deepspeed"
    worst = max(losses, key=lambda name: losses[name])
    assert (saved / "best").read_text().strip() == worst
    assert {f"step_{step}" for step in disk.list_steps(saved)} == {worst, "step_8"}


def estimated(folder: Path, stage: int, dtype: str) -> list[float]:
    """What was estimated of a checkpoint, over what it takes."""
    from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointConfig, DeepSpeedCheckpointEngine
    from arctic_training.distributed import process_group
    from arctic_training.state import Progress

    process_group.init_process_group()
    engine = small.make(stage, dtype)
    small.window(engine, 0, 1, 1)
    view, state = small.run_of(folder, Progress(step=1))
    view.engines = {"model": engine}
    saver = DeepSpeedCheckpointEngine(view, DeepSpeedCheckpointConfig(output_dir=folder))()
    path = saver.save({"model": engine}, state)
    assert path is not None
    held = sum(
        tensor.numel() * tensor.element_size() for tensor in small.everything(engine).values() if tensor.numel() > 1
    )
    estimate = disk_space.estimate(saver)
    engine.destroy()
    return [estimate, held]


@pytest.mark.fault(6)
@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (1, "bf16")])
def test_the_size_of_a_checkpoint_is_known_beforehand(tmp_path: Path, stage: int, dtype: str) -> None:
    ((estimate, held),) = processes.share(estimated, 1, tmp_path, stage, dtype)
    assert 0.9 < estimate / held < 1.1


@pytest.mark.fault(6)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_disk_without_room_is_told_at_the_start(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {tmp_path} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        engine = notes(tmp_path / "run", save_every_n_steps=10, keep_last=2)
        view: Any = engine.trainer
        view.training_horizon, view.steps_per_epoch = 100, 10
        monkeypatch.setattr(disk_space, "estimate", lambda _: 340_000)
        disk_space.warn_if_low(engine)
        monkeypatch.setattr(disk_space, "estimate", lambda _: 400_000)
        view.training_horizon = 20  # two saves, so that there are never three
        disk_space.warn_if_low(engine)
        assert messages == []
        view.training_horizon = 100
        disk_space.warn_if_low(engine)
        assert messages[-1].startswith(f"{tmp_path / 'run'}: 3 checkpoints of about 0.4 MiB exist at once")
        assert "1.1 MiB more than now, and 1.0 MiB are free" in messages[-1]
    finally:
        os.system(f"umount {tmp_path}")
