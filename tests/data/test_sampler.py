"""The order of the rows: each once, whatever the cut, from any position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.sampler import GlobalOrder


def whole(size: int, micro: int, world: int, epoch: int, **more: object) -> list[list[int]]:
    """The global batches of an epoch, put together from what each rank holds."""
    ranks = [GlobalOrder(size, micro, rank, world, seed=3, **more) for rank in range(world)]  # type: ignore[arg-type]
    assert len({len(order) for order in ranks}) == 1
    return [[int(row) for order in ranks for row in order.batch(epoch, index)] for index in range(len(ranks[0]))]


@given(size=st.integers(1, 60), micro=st.integers(1, 5), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_every_row_once(size: int, micro: int, world: int, epoch: int) -> None:
    rows = [row for batch in whole(size, micro, world, epoch) for row in batch]
    assert sorted(rows) == list(range(size))


@given(size=st.integers(1, 60), micro=st.integers(1, 5), world=st.integers(1, 4))
def test_drop_last_leaves_full_batches_only(size: int, micro: int, world: int) -> None:
    batches = whole(size, micro, world, 0, drop_last=True)
    assert all(len(batch) == micro * world for batch in batches)
    assert len(batches) == size // (micro * world)


@given(size=st.integers(1, 60), micro=st.integers(1, 4), world=st.integers(1, 3), epoch=st.integers(0, 3))
def test_a_global_batch_does_not_depend_on_its_cut(size: int, micro: int, world: int, epoch: int) -> None:
    assert (
        whole(size, micro, world, epoch) == whole(size, micro * world, 1, epoch) == whole(size, 1, micro * world, epoch)
    )


def test_epochs_and_seeds_differ_and_eval_is_in_order() -> None:
    first, again = GlobalOrder(50, seed=1), GlobalOrder(50, seed=1)
    assert not np.array_equal(first.permutation(0), first.permutation(1))
    assert not np.array_equal(first.permutation(0), GlobalOrder(50, seed=2).permutation(0))
    again.permutation(7)
    assert np.array_equal(first.permutation(0), again.permutation(0))
    assert GlobalOrder(5, shuffle=False).permutation(9).tolist() == [0, 1, 2, 3, 4]
