"""Windows: whatever the cut, the shares of the micro-batches make the loss the mean over the window's targets."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.trainer.window import AccumulationWindow, iter_windows, to_device

CPU = torch.device("cpu")


def cut(
    batches: list[dict[str, Any]], size: int, *, ranks: int = 1, others: int = 0, stop: bool = False
) -> list[AccumulationWindow]:
    def reduce(mine: torch.Tensor) -> torch.Tensor:
        return mine + torch.tensor([others, 0, 0, 0, 0])

    return list(
        iter_windows(
            batches,
            size,
            targets=lambda batch: len(batch["losses"]),
            stop=lambda: stop,
            reduce=reduce,
            ranks=ranks,
            device=CPU,
        )
    )


@pytest.mark.fault(15, 17)
@given(
    rows=st.lists(st.lists(st.floats(-5, 5, width=32), max_size=6), min_size=1, max_size=12),
    size=st.integers(1, 5),
)
def test_the_mean_over_a_window_is_the_mean_over_its_targets(rows: list[list[float]], size: int) -> None:
    batches = [{"losses": torch.tensor(row, dtype=torch.float64)} for row in rows]
    held = cut(batches, size)
    assert [len(w.batches) for w in held] == [len(rows[i : i + size]) for i in range(0, len(rows), size)]
    for number, window in enumerate(held):
        mine = [loss for row in rows[number * size : (number + 1) * size] for loss in row]
        assert window.targets == len(mine)
        # what an engine does: the mean of the micro-batches' losses
        mean = sum(float(b["losses"].sum()) / b["num_items_in_batch"] for b in window.batches) / window.size
        assert mean == pytest.approx(sum(mine) / max(1, len(mine)), abs=1e-9)


def test_the_other_ranks_targets_count() -> None:
    # this rank has 2 targets, the other 6: each rank's share is 8 / 2, and the mean over ranks is the sum / 8
    (window,) = cut([{"losses": torch.ones(2)}], 1, ranks=2, others=6)
    assert window.targets == 8 and window.batches[0]["num_items_in_batch"] == 4


def test_a_request_to_stop_marks_the_window() -> None:
    assert cut([{"losses": torch.ones(1)}], 1, stop=True)[0].stop
    assert not cut([{"losses": torch.ones(1)}], 1)[0].stop


def test_the_window_says_when_it_closes() -> None:
    window = AccumulationWindow([1, 2, 3])
    closing = []
    for window.index in range(3):
        closing.append(window.is_last_micro_batch)
    assert closing == [False, False, True]


@given(size=st.integers(1, 7), step_size=st.integers(0, 8), index=st.integers(0, 6))
def test_a_window_is_gone_through_in_steps_of_so_many_micro_batches(size: int, step_size: int, index: int) -> None:
    window = AccumulationWindow(list(range(size)), index=index)
    others = [str(n) for n in range(size)]
    with pytest.raises(ValueError, match=f"{size + 1} batches of a window of {size}"):
        next(window.iterate([*others, "another"], step_size=step_size))
    lengths, current = list[int](), 0
    for number, batch in enumerate(window.iterate(others, step_size=step_size)):
        current += 1
        assert (window.index, batch) == (number, str(number))
        if window.is_last_micro_batch:
            assert len(window.step_indices) == current
            lengths.append(current)
            current = 0
    assert current == 0 and sum(lengths) == size
    assert set(lengths[:-1]) <= {step_size} and lengths[-1] <= (step_size or size)
    assert window.index == index and len(window.step_indices) == size


class Pair(NamedTuple):
    x: torch.Tensor
    y: list[torch.Tensor]


def test_every_kind_of_batch_goes_to_the_device() -> None:
    one = torch.ones(2)
    moved = to_device({"pair": Pair(one, [one]), "both": (one, 3)}, torch.device("meta"))
    assert isinstance(moved["pair"], Pair) and isinstance(moved["both"], tuple)
    assert {part.device.type for part in (moved["pair"].x, moved["pair"].y[0], moved["both"][0])} == {"meta"}
