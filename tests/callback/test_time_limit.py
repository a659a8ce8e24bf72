"""When a run asks to stop so that it ends before its time is over."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_training import GANTrainer, get_config
from arctic_training.callback import time_limit
from arctic_training.callback.time_limit import TimeLimit, TimeLimitConfig
from tests.contract.cases import recipe

pytestmark = pytest.mark.fault(35)


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now))


def updates_until_asked(clock: Clock, limit: float, *lengths: float) -> tuple[int, float]:
    """After which update it asks, and when; the last length goes on."""
    requests: list[Any] = []
    trainer = SimpleNamespace(request_stop=lambda *request: requests.append(request), checkpointers=[])
    callback, began = TimeLimit(TimeLimitConfig(type="time_limit", limit=limit)), clock.now
    callback.pre_train(trainer)
    for update in range(1, 100_000):
        clock.now += lengths[min(update, len(lengths)) - 1]
        callback.post_after_update(trainer)
        if requests:
            assert requests == [(f"its time is nearly over: {callback._allowed:.0f} s", 75)]
            return update, clock.now - began
    raise AssertionError("it never asked")


def test_there_is_time_for_two_of_the_longest_updates_and_some_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # an hour: three minutes to spare, and twice the 100 s that the second update, with an evaluation, took
    _, when = updates_until_asked(clock, 3600, 10, 100, 10)
    assert 3600 - 180 - 200 - 10 <= when <= 3600 - 180 - 200 + 10
    assert updates_until_asked(clock, 20, 1)[1] == 14  # a quarter to spare
    assert updates_until_asked(clock, 100_000, 50)[1] == pytest.approx(100_000 - 300 - 100, abs=50)


def test_slurm_says_when_the_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1100")
    assert updates_until_asked(clock, 0, 1)[1] == pytest.approx(100 - 15 - 2, abs=1)
    clock.now = 1000.0
    assert updates_until_asked(clock, 20, 1)[1] == 14  # what comes first


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), (90, 90), ("30s", 30), ("45m", 2700), ("3h50m", 13_800), ("2d", 172_800), ("1.5 h", 5400), ("0", 0)],
)
def test_lengths_of_time_are_read_as_people_write_them(tmp_path: Path, written: Any, seconds: float) -> None:
    config = get_config(recipe("gan", tmp_path, time_limit=written, hang_timeout=written))
    assert (config.time_limit, config.hang_timeout) == (seconds, seconds)


@pytest.mark.parametrize("written", ["soon", "3h50", "-5", "", "h", "5m3h", True])
def test_what_is_no_length_of_time_is_refused(tmp_path: Path, written: Any) -> None:
    from arctic_training.errors.types import RecipeError

    with pytest.raises(RecipeError, match="time_limit"):
        get_config(recipe("gan", tmp_path, time_limit=written))


def test_a_run_saves_and_says_that_it_is_to_be_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Slow(GANTrainer):
        name = "slow_for_the_time_limit"

        def step(self, batch: Any) -> None:
            clock.now += 0.5
            super().step(batch)

    settings = recipe("gan", tmp_path / "files", output_dir=str(tmp_path), time_limit=4, train_iters=10_000)
    section = {"type": "deepspeed", "output_dir": str(tmp_path / "saved")}
    trainer = Slow(get_config({**settings, "checkpoint": section} | {"type": Slow.name}))
    trainer.train()
    trainer.close()
    assert trainer.exit_code == 75
    assert trainer.progress.step == 6  # asked after the fifth, agreed on in the next
    assert (tmp_path / "saved" / "step_6").is_dir()
