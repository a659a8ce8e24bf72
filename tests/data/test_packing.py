"""Packs hold every sample once, within capacity, tightly, deterministically and fast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.batching.packing import best_fit, repeated
from tests.work import calls

LENGTHS = st.lists(st.integers(1, 50), max_size=120)


def first_principles(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as a text book has it: the room left in each pack."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@pytest.mark.fault(33)
@given(lengths=LENGTHS, more=st.integers(0, 60))
def test_every_sample_once_within_the_room(lengths: list[int], more: int) -> None:
    capacity = max(lengths, default=1) + more
    packs = best_fit(lengths, capacity)
    assert sorted(int(n) for pack in packs for n in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[n] for n in pack) <= capacity for pack in packs)
    assert [pack.tolist() for pack in packs] == [packs[n].tolist() for n in range(len(packs))]


@given(lengths=LENGTHS, more=st.integers(0, 60))
def test_it_is_best_fit_decreasing(lengths: list[int], more: int) -> None:
    capacity = max(lengths, default=1) + more
    rooms = sorted(capacity - sum(lengths[n] for n in pack) for pack in best_fit(lengths, capacity))
    assert rooms == first_principles(lengths, capacity)


@given(lengths=LENGTHS)
def test_the_same_every_time(lengths: list[int]) -> None:
    one, other = best_fit(lengths, 50), best_fit(np.array(lengths, np.int32), 50)
    assert np.array_equal(one.members, other.members)
    assert np.array_equal(one.ends, other.ends)


@pytest.mark.parametrize("lengths", [[0], [51], [3, 60]])
def test_what_does_not_fit_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        best_fit(lengths, 50)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_repeating_fills_and_drops_nothing(lengths: list[int]) -> None:
    packs = best_fit(lengths, 50)
    for before, after in zip(packs, repeated(packs, lengths, 50), strict=True):
        room = 50 - sum(lengths[n] for n in after)
        assert set(before) == set(after)
        assert 0 <= room < min(lengths[n] for n in before)


def test_log_normal_lengths_are_filled_in_few_calls() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6.0, 1.0, 50_000), 4, 8192).astype(int)
    assert calls(lambda: best_fit(lengths, 8192)) < 3 * len(lengths)
    packs = best_fit(lengths, 8192)
    assert lengths.sum() / (len(packs) * 8192) > 0.998
