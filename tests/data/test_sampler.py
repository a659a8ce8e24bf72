"""The order of rows: each once, on any number of ranks and micro-batches, from any position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.batching.sampler import GlobalOrder


def batches_of_epoch(size: int, micro: int, world: int, epoch: int, row: int = 0, **more: object) -> list[list[int]]:
    """The global batches from ``row`` of an epoch on, put together from what each rank holds."""
    ranks = [GlobalOrder(size, micro, rank, world, seed=3, **more) for rank in range(world)]  # type: ignore[arg-type]
    assert len({len(order) for order in ranks}) == 1
    starts = ranks[0].batch_starts(row)
    assert row or len(starts) == len(ranks[0])
    return [[int(row) for order in ranks for row in order.batch(epoch, start)] for start in starts]


@given(size=st.integers(1, 60), micro=st.integers(1, 5), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_every_row_once(size: int, micro: int, world: int, epoch: int) -> None:
    rows = [row for batch in batches_of_epoch(size, micro, world, epoch) for row in batch]
    assert sorted(rows) == list(range(size))


@given(size=st.integers(1, 60), micro=st.integers(1, 5), world=st.integers(1, 4), accumulation_steps=st.integers(1, 3))
def test_drop_last_leaves_full_updates_only(size: int, micro: int, world: int, accumulation_steps: int) -> None:
    batches = batches_of_epoch(size, micro, world, 0, drop_last=True, accumulation_steps=accumulation_steps)
    assert all(len(batch) == micro * world for batch in batches)
    assert len(batches) == size // (micro * world * accumulation_steps) * accumulation_steps
    rows = [row for batch in batches for row in batch]
    assert rows == [
        row
        for batch in batches_of_epoch(size, micro * world * accumulation_steps, 1, 0, drop_last=True)
        for row in batch
    ]


@given(size=st.integers(1, 60), micro=st.integers(1, 4), world=st.integers(1, 3), epoch=st.integers(0, 3))
def test_a_global_batch_does_not_depend_on_its_cut(size: int, micro: int, world: int, epoch: int) -> None:
    assert (
        batches_of_epoch(size, micro, world, epoch)
        == batches_of_epoch(size, micro * world, 1, epoch)
        == batches_of_epoch(size, 1, micro * world, epoch)
    )


@given(
    size=st.integers(1, 60),
    cuts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)), min_size=2, max_size=4),
)
def test_another_cut_goes_on_at_any_row(size: int, cuts: list[tuple[int, int, int]]) -> None:
    """Each cut takes a few global batches and hands over, be the row a multiple of the next one's or not."""
    row, seen = 0, list[int]()
    for n, (micro, world, count) in enumerate(cuts):
        batches = batches_of_epoch(size, micro, world, 1, row)
        for batch in batches if n == len(cuts) - 1 else batches[:count]:
            seen += batch
            row += micro * world
    assert seen == GlobalOrder(size, seed=3).permutation(1).tolist()


def passes(size: int, count: int) -> list[int]:
    """The rows of so many passes over the data."""
    return [row for number in range(count) for row in GlobalOrder(size, seed=3).permutation(number).tolist()]


@given(
    size=st.integers(1, 40),
    length=st.integers(1, 6),
    cut=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    drop_last=st.booleans(),
)
def test_epochs_of_a_length_follow_one_another_through_the_passes(
    size: int, length: int, cut: tuple[int, int, int], drop_last: bool
) -> None:
    micro, world, accumulation = cut
    more = {"accumulation_steps": accumulation, "epoch_length": length, "drop_last": drop_last}
    epochs = [batches_of_epoch(size, micro, world, epoch, **more) for epoch in range(4)]
    assert all(len(batches) == length * accumulation for batches in epochs)
    assert all(len(batch) == micro * world for batches in epochs for batch in batches)
    seen = [row for batches in epochs for batch in batches for row in batch]
    assert seen == passes(size, -(-len(seen) // size))[: len(seen)]


@given(
    size=st.integers(1, 40),
    length=st.integers(1, 4),
    taken=st.integers(0, 4),
    cuts=st.tuples(*[st.sampled_from([(1, 1, 6), (2, 1, 3), (1, 3, 2), (3, 2, 1), (1, 2, 3), (6, 1, 1)])] * 2),
)
def test_an_epoch_of_a_length_goes_on_on_other_ranks(
    size: int, length: int, taken: int, cuts: tuple[tuple[int, int, int], ...]
) -> None:
    """Two cuts of a global batch of six rows; the second goes on after some steps of the first."""
    parts: list[list[int]] = []
    for (micro, world, accumulation), row in zip(cuts, (0, 6 * min(taken, length)), strict=True):
        more = {"accumulation_steps": accumulation, "epoch_length": length}
        parts.append([one for batch in batches_of_epoch(size, micro, world, 2, row, **more) for one in batch])
    assert parts[0][6 * taken :] == parts[1]


def test_epochs_and_seeds_differ_and_eval_is_in_order() -> None:
    first, again = GlobalOrder(50, seed=1), GlobalOrder(50, seed=1)
    assert not np.array_equal(first.permutation(0), first.permutation(1))
    assert not np.array_equal(first.permutation(0), GlobalOrder(50, seed=2).permutation(0))
    again.permutation(7)
    assert np.array_equal(first.permutation(0), again.permutation(0))
    assert GlobalOrder(5, shuffle=False).permutation(9).tolist() == [0, 1, 2, 3, 4]
