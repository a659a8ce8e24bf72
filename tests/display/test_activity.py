"""Activities: how far each is, how long it still takes, and which time is not that of training."""

import time
from contextlib import suppress

import pytest

from arctic_training.display import activity as module
from arctic_training.display.activity import activity, current, seconds_aside
from arctic_training.display.format import clock, position


def test_they_nest_and_end_with_their_block() -> None:
    with activity("training", 10) as run:
        with suppress(KeyError), activity("evaluating", 3), activity("generating"):
            assert [one.name for one in current()] == ["training", "evaluating", "generating"]
            raise KeyError
        assert current() == [run]
    assert current() == []


def test_the_time_left_is_by_the_speed_since_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    one = module.Activity("training", 100, 40, began=now)  # resumed at step 40
    assert one.seconds_left is None
    now, one.done = 120.0, 50
    assert one.seconds_left == pytest.approx(100.0)  # 2 seconds a step
    one.done = 100
    assert one.seconds_left == 0
    assert module.Activity("reading").seconds_left is None


def test_time_aside_counts_once() -> None:
    before, began = seconds_aside(), time.perf_counter()
    with activity("evaluating", aside=True):
        with activity("saving", aside=True), activity("generating"):
            time.sleep(0.02)
        inside = seconds_aside() - before
    with activity("generating"):
        time.sleep(0.02)
    assert 0.02 <= inside <= seconds_aside() - before < time.perf_counter() - began - 0.02


def test_times_and_positions_are_written_for_people() -> None:
    assert [clock(one) for one in (0, 59.6, 3725, None)] == ["0:00:00", "0:01:00", "1:02:05", "-:--:--"]
    assert (position(3, 1200), position(3, None)) == ("3/1,200", "3")
