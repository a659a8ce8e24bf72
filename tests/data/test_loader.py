"""Loaders: exact from any position, without the model's random generator, equally long on every rank."""

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training.data.batching.loader import IndexedLoader, without_targets
from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.errors.types import SampleError, WorkerError
from tests.processes import HANG

ROWS = [{"input_ids": np.full(3, n, np.int32), "labels": np.full(3, n, np.int32)} for n in range(11)]


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def loader(rank: int = 0, world: int = 1, workers: int = 0, micro: int = 2, **more: Any) -> IndexedLoader:
    order = GlobalOrder(len(ROWS), micro, rank, world, seed=5)
    return IndexedLoader(ROWS, order, collate, make_padding_sample=without_targets, workers=workers, **more)


def numbers(batches: Any) -> list[list[int]]:
    return [batch["labels"][:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_seek_is_exact(workers: int) -> None:
    one = loader(workers=workers)
    one.seek(1, 0)
    expected = numbers(one)
    assert sorted(n for batch in expected for n in batch) == list(range(11))
    for start in (0, 3, 6):
        one.seek(1, 2 * start)
        assert numbers(one) == expected[start:]
        assert [one.samples(1, 2 * b) for b in range(start, 6)] == expected[start:]
    one.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing(workers: int) -> None:
    before = torch.get_rng_state()
    list(loader(workers=workers))
    assert torch.equal(before, torch.get_rng_state())


def test_close_ends_the_workers_and_the_loader_lives_on() -> None:
    one = loader(workers=2)
    batches = iter(one)
    next(batches)
    workers = list(one._running._workers)
    assert all(worker.is_alive() for worker in workers)
    one.close()
    assert not any(worker.is_alive() for worker in workers)
    assert len(numbers(one)) == len(one)
    one.close()


def test_a_rank_without_a_row_gets_one_without_targets() -> None:
    ranks = [numbers(loader(rank, 4)) for rank in range(4)]
    assert len({len(batches) for batches in ranks}) == 1
    assert ranks[3][-1] == [-100]
    assert ranks[1][-1] != ranks[2][-1]
    seen = [n for batches in ranks for batch in batches for n in batch if n != -100]
    assert sorted(seen) == list(range(11))


class FailedBatch:
    """Rows of which one cannot be read."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise KeyError("labels")
        return ROWS[index]


@pytest.mark.fault(30)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named_with_the_line_that_failed(workers: int) -> None:
    order = GlobalOrder(len(ROWS), 2, seed=5)
    one = IndexedLoader(FailedBatch(), order, collate, make_padding_sample=without_targets, workers=workers)
    with pytest.raises(SampleError, match=r"^sample 7: KeyError: 'labels' \(test_loader.py:\d+ __getitem__\)$"):
        list(one)
    one.close()


@pytest.mark.fault(30)
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_make_no_batch_are_named(workers: int) -> None:
    def stack(rows: list[Any]) -> Any:
        raise ValueError("all input arrays must have the same shape")

    one = IndexedLoader(
        ROWS, GlobalOrder(4, 2, shuffle=False), stack, make_padding_sample=without_targets, workers=workers
    )
    with pytest.raises(SampleError, match=r"^a batch of samples 0, 1 cannot be made \(ValueError: all .* stack\)\)$"):
        list(one)
    one.close()


@pytest.mark.fault(26)
def test_a_worker_that_is_killed_is_named() -> None:
    one = loader(workers=2)
    batches = iter(one)
    next(batches)
    killed = one._running._workers[0].pid
    os.kill(killed, signal.SIGKILL)
    end = time.monotonic() + HANG

    def go_on() -> None:
        while time.monotonic() < end:
            next(batches, None)
            time.sleep(0.01)

    with pytest.raises(WorkerError) as error:
        go_on()
    one.close()
    assert f"a worker of the data loader (process {killed}) was ended by SIGKILL; " in str(error.value)


def test_a_row_may_be_a_pack() -> None:
    packs = [[0, 4], [1], [2, 3, 5]]
    order = GlobalOrder(len(packs), seed=5)
    one = IndexedLoader(ROWS, order, collate, make_padding_sample=without_targets, groups=packs)
    assert sorted(numbers(one)) == [[0, 4], [1], [2, 3, 5]]
