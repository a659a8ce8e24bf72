"""A run that was stopped for good stays stopped and gives the reason; one with nothing to train reports that."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_training import Callback, Checkpointer, Evaluator, GANTrainer, Tracker, get_config
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.distributed import process_group
from arctic_training.errors.types import CheckpointError, InputError, NonFiniteError
from arctic_training.launch.launcher import _exit_code
from arctic_training.launch.worker import run
from tests import processes
from tests.contract.cases import recipe

Recipe = dict[str, Any]
Act = Callable[[Any], Any]


class Exported(Checkpointer[Any]):
    """Writes the number of steps."""

    name = "export_for_the_ends"

    def write(self, folder: Path, *_: Any) -> None:
        (folder / "updates.txt").write_text(str(self.trainer.progress.step))


def acting(event: str) -> Act:
    def act(trainer: Any) -> None:
        if event in Acting.acts:
            Acting.acts[event](trainer)

    return act


class Acting(GANTrainer):
    """Calls the functions of a test at events; five steps an epoch, ten in all."""

    name = "acting_for_the_ends"
    checkpoint_engine_type = [DeepSpeedCheckpointEngine, Exported]
    acts: dict[str, Act] = {}
    callbacks = [(event, acting(event)) for event in ("pre-train", "post-step", "post-evaluate")]


class Measuring(Evaluator):
    """Measures 1, or calls the function of a test."""

    name = "measuring_for_the_ends"
    act: Act = staticmethod(lambda _: None)

    def __call__(self, trainer: Any) -> dict[str, float]:
        Measuring.act(trainer)
        return {"measured": 1.0}


class Remembering(Tracker):
    """Remembers how its runs ended."""

    name = "remembering_for_the_ends"
    ends: list[bool] = []

    def start(self, recipe: Any, run_dir: Path, step: int) -> None: ...

    def log(self, values: Any, step: int) -> None: ...

    def finish(self, failed: bool) -> None:
        Remembering.ends.append(failed)


class Patience(Callback):
    """Something of the recipe that a run may be stopped by."""

    name = "patience_for_the_ends"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    Remembering.ends.clear()
    Acting.acts = {}
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def settings(tmp_path: Path) -> Recipe:
    return acting_recipe(tmp_path)


def acting_recipe(folder: Path) -> Recipe:
    settings = recipe("gan", folder / "files", output_dir=str(folder / "run"))
    section = {"type": "deepspeed", "auto_resume": True}
    more: Recipe = {"type": Acting.name, "callbacks": [], "checkpoint": section, "trackers": [Remembering.name]}
    return settings | more


def trained(settings: Recipe, acts: dict[str, Act] | None = None) -> Any:
    Acting.acts = acts or {}
    trainer = Acting(get_config(settings))
    trainer.train()
    trainer.close()
    return trainer


def losses(settings: Recipe) -> list[tuple[int, float]]:
    lines = (Path(settings["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]


def log(settings: Recipe) -> str:
    return (Path(settings["output_dir"]) / "logs" / "rank_0.log").read_text()


def saved(settings: Recipe, kind: str = "deepspeed") -> list[int]:
    return disk.list_steps(Path(settings["output_dir"]) / "checkpoints" / kind)


def at(update: int, act: Act) -> Act:
    """Acts in that update, counted from 1, at its first micro-batch."""
    return lambda trainer: act(trainer) if (trainer.progress.step, trainer.window.index) == (update - 1, 0) else None


def enough(trainer: Any) -> None:
    trainer.stop("not improved since step 1")


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    "change",
    [
        {"allow_changes": ["stop"]},
        {"allow_changes": ["callbacks"], "callbacks": [Patience.name]},
        {"allow_changes": ["optimizer.lr"], "optimizer": {"lr": 2e-3}},
    ],
)
def test_a_run_that_was_stopped_for_good_trains_on_when_it_is_another_or_is_to(
    settings: Recipe, change: Recipe
) -> None:
    """Exactly as one that was not stopped, though it was in the middle of a window."""
    settings |= {"gradient_accumulation_steps": 2, "loss_log_interval": 0, "checkpoint": [settings["checkpoint"]]}
    assert trained(settings, {"post-step": at(2, enough)}).progress.step == 2
    free = {"exit_iteration": 5}  # what decides nothing of what is trained
    again = trained(settings | free)
    assert again.progress.step == 2 and again.stop_reason == "not improved since step 1"
    assert "it was stopped for good: not improved since step 1" in log(settings)
    uninterrupted = {**settings, "output_dir": f"{settings['output_dir']}_whole", "checkpoint": []}
    assert trained(settings | change).progress == trained(uninterrupted).progress
    assert "Continuing past the stop at step 2: not improved" in log(settings)
    if change == {"allow_changes": ["stop"]}:
        assert losses(settings) == losses(uninterrupted)


def test_a_run_may_be_stopped_by_what_its_last_evaluation_shows(settings: Recipe) -> None:
    settings |= {"evaluate_last": True, "evaluators": [Measuring.name], "epochs": 1}
    trained(settings, {"post-evaluate": enough})
    assert saved(settings) == [5] and "stopped for good after step 5: not improved since step 1" in log(settings)
    assert trained(settings).stop_reason == "not improved since step 1"


def test_a_reason_that_cannot_be_added_to_a_checkpoint_is_saved_with_a_new_one(
    settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "update_manifest", refuse)
    settings["checkpoint"]["save_every_n_steps"] = 1
    trained(settings, {"post-step": at(3, enough)})
    assert saved(settings) == [1, 2, 3]
    assert disk.read_manifest(Path(settings["output_dir"]) / "checkpoints/deepspeed/step_3")["stopped"].startswith(
        "not"
    )


@pytest.mark.parametrize("limit", [{}, {"train_iters": 7}, {"exit_iteration": 7}])
def test_a_run_with_nothing_left_to_train_says_so_and_saves_what_is_not_saved_yet(
    settings: Recipe, limit: Recipe
) -> None:
    section = {**settings["checkpoint"], "save_end_of_training": True}
    last = trained(settings | limit | {"checkpoint": section}).progress.step
    export = {"type": Exported.name, "save_end_of_training": True}
    folder = Path(settings["output_dir"]) / "checkpoints"
    numbers = []
    for _ in range(2):
        assert trained(settings | limit | {"checkpoint": [section, export]}).progress.step == last
        numbers.append((folder / Exported.name / f"step_{last}" / "updates.txt").stat().st_ino)
        key, value = next(iter(limit.items()), ("", 0))
        reached = f"{key} is {value}" if limit else "all 2 epochs are over"
        assert f"nothing was trained: the run is at step {last}, and {reached}" in log(settings)
    assert numbers[0] == numbers[1]  # written once
    # nor are weights that another folder holds saved again as they are
    other = settings | limit | {"output_dir": f"{settings['output_dir']}_other", "resume": str(folder / "deepspeed")}
    trained(other | {"checkpoint": [section, export]})
    assert saved(other) == [] and saved(other, Exported.name) == [last]


def test_a_run_of_no_epoch_evaluates_and_saves_what_it_was_made_with_once(settings: Recipe) -> None:
    settings["checkpoint"]["save_end_of_training"] = True
    settings |= {
        "epochs": 0,
        "evaluate_last": True,
        "evaluators": [Measuring.name],
        "scheduler": {"name": "polynomial"},
    }
    folder = Path(settings["output_dir"])
    for start in (1, 2):
        assert run(get_config(settings)) == 0
        assert (folder / "metrics.jsonl").read_text().count("measured") == start
        assert saved(settings) == [0] and "nothing was trained" not in log(settings)


@pytest.mark.fault(14)
def test_what_was_saved_on_the_course_that_a_run_went_back_from_is_saved_again(settings: Recipe) -> None:
    """The run goes back from step 4 to 2, and leaves out a window: its step 3 is another."""
    sections = [
        {"type": "deepspeed", "save_every_n_steps": 2},
        {"type": "deepspeed", "save_every_n_steps": 3, "output_dir": f"{settings['output_dir']}/other"},
    ]
    settings |= {"checkpoint": sections, "nan_guard": "back", "train_iters": 5}
    spoilt: list[int] = []

    def spoil(trainer: Any, loss: Any) -> Any:
        if trainer.progress.step == 3 and not spoilt:
            spoilt.append(trainer.progress.sample_index)
            return loss * float("nan")
        return loss

    class Spoilt(Acting):
        name = "spoilt_for_the_ends"
        callbacks = [("post-loss", spoil)]

    trainer = Spoilt(get_config(settings | {"type": Spoilt.name}))
    places = []
    for engine in trainer.checkpointers:
        engine.listen("post-save", lambda one, folder: places.append(folder.name))
    trainer.train()
    trainer.close()
    assert spoilt and places == ["step_2", "step_3", "step_3", "step_4"]


@pytest.mark.fault(6)
def test_an_evaluation_that_fails_at_the_end_takes_no_weights_with_it(
    settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("the scorer is gone")

    monkeypatch.setattr(Measuring, "act", staticmethod(fail))
    settings |= {"evaluate_last": True, "evaluators": [Measuring.name]}
    settings["checkpoint"]["save_end_of_training"] = True
    trainer = Acting(get_config(settings))
    with pytest.raises(RuntimeError, match="the scorer is gone"):
        trainer.train()
    assert saved(settings) == [10] and Remembering.ends == [True]
    monkeypatch.setattr(Measuring, "act", staticmethod(lambda _: None))
    again = trained(settings)  # the folder is free again, though nobody has closed the first
    assert again.progress.step == 10 and Remembering.ends == [True, False]


def test_the_last_checkpoint_may_be_the_best(settings: Recipe) -> None:
    """It is saved before it is measured."""
    kept = {"save_every_n_steps": 5, "save_end_of_training": True, "keep_last": 1, "keep_best": 1}
    settings["checkpoint"] |= {**kept, "best_metric": "measured", "best_mode": "min"}
    settings |= {"evaluate_last": True, "eval_interval": 5, "evaluators": [Measuring.name], "exit_iteration": 8}
    trained(settings)
    folder = Path(settings["output_dir"]) / "checkpoints/deepspeed"
    assert disk.read_manifest(folder / "step_8")["values"] == {"measured": 1.0}
    assert saved(settings) == [5, 8] and "cannot be the best" not in log(settings)


@pytest.mark.fault(11)
@pytest.mark.parametrize(("act", "code", "kept"), [("evaluate", 0, []), ("last update", 143, [10])])
def test_a_signal_at_the_end_of_a_run(
    settings: Recipe, monkeypatch: pytest.MonkeyPatch, act: str, code: int, kept: list[int]
) -> None:
    """When all is trained and saved it is an end like any other; before, the evaluation is left to a restart."""
    measured: list[int] = []

    def hear(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(
        Measuring, "act", staticmethod(lambda it: measured.append(1) if act != "evaluate" else hear(it))
    )
    settings |= {"evaluate_last": True, "evaluators": [Measuring.name]}
    Acting.acts = {"post-step": at(10, hear)} if act != "evaluate" else {}
    assert run(get_config(settings)) == code
    assert saved(settings) == kept and Remembering.ends == [False]
    if code:
        Acting.acts = {}
        assert not measured and run(get_config(settings)) == 0 and measured == [1]


@pytest.mark.fault(11)
@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((143, 143), 143), ((0, 143), 143)])
def test_the_command_says_that_a_run_is_over_though_a_signal_came_late(codes: tuple[int, int], code: int) -> None:
    children: Any = [
        SimpleNamespace(rank=rank, failure=lambda: None, process=SimpleNamespace(returncode=one))
        for rank, one in enumerate(codes)
    ]
    assert _exit_code(children, [], signal.SIGTERM) == code


@pytest.mark.fault(14)
def test_a_number_that_is_none_in_the_last_update_is_no_good_end_for_trackers(settings: Recipe) -> None:
    """Neither where nothing is saved at the end."""

    def unshared(trainer: Any) -> None:
        trainer.listeners["nan_guard"]._unshared = "rank 0"

    Acting.acts = {"post-step": at(10, unshared)}
    trainer = Acting(get_config(settings | {"checkpoint": []}))
    with pytest.raises(NonFiniteError):
        trainer.train()
    trainer.close(failed=True)
    assert Remembering.ends == [True]


@pytest.mark.fault(6, 23)
def test_a_save_that_fails_at_the_end_is_an_error_and_lets_others_in(settings: Recipe) -> None:
    settings["checkpoint"]["save_end_of_training"] = True
    trainer = Acting(get_config(settings))
    with pytest.raises(InputError, match="another trainer of this process"):
        Acting(get_config(settings))
    aside = Path(settings["output_dir"]) / "checkpoints/deepspeed/.aside-step_10"
    aside.write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot create a checkpoint"):
        trainer.train()
    assert Remembering.ends == [True]
    aside.unlink()
    assert trained(settings).progress.step == 10


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ([], "the recipe has no checkpoint section from which it could be resumed"),
        ({"type": "deepspeed"}, "resume it with `resume: "),
    ],
)
def test_a_run_that_is_asked_to_stop_says_what_a_restart_needs(settings: Recipe, section: Any, says: str) -> None:
    trained(
        settings | {"checkpoint": section}, {"post-step": at(2, lambda it: it.request_stop("the machine is wanted"))}
    )
    assert f"stopping after step 3: the machine is wanted; {says}" in log(settings)


def several_starts(folder: Path) -> list[tuple[int, str, int]]:
    """Of each start the update at which it ended, the reason, and the exit code."""
    process_group.init_process_group()
    settings, seen = acting_recipe(folder), []
    export = {"type": Exported.name, "save_every_n_steps": 1}
    settings |= {"micro_batch_size": 2, "checkpoint": [settings["checkpoint"], export]}

    def ask(trainer: Any) -> None:
        if process_group.rank() == 1:
            trainer.request_stop("the machine is wanted", 75)

    for acts in ({"post-step": at(1, ask)}, {"post-step": at(4, enough)}, {}):
        trainer = trained(settings, acts)
        seen.append((trainer.progress.step, trainer.stop_reason, trainer.exit_code))
    return seen


@pytest.mark.fault(2, 35)
def test_all_processes_end_at_the_same_update_and_know_why(tmp_path: Path) -> None:
    acting_recipe(tmp_path)
    first, second = processes.share(several_starts, 2, tmp_path)
    reason = "not improved since step 1"
    assert first == second == [(2, "the machine is wanted", 75), (4, reason, 0), (4, reason, 0)]
