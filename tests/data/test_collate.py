"""Collation: every token once, documents separate, labels in place."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.batching.collate import pack, pad


def sample(size: int, start: int = 1) -> dict[str, Any]:
    ids = np.arange(start, start + size, dtype=np.int32)
    return {"input_ids": ids, "labels": np.where(ids % 3 == 0, ids, -100).astype(np.int32)}


SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def targets(samples: list[dict[str, Any]]) -> int:
    return sum(int((one["labels"][1:] != -100).sum()) for one in samples)


@given(sizes=SIZES, multiple=st.sampled_from([1, 8, 16]))
def test_side_by_side(sizes: list[int], multiple: int) -> None:
    samples = [sample(size) for size in sizes]
    batch = pad(samples, pad_token=0, multiple=multiple)
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["input_ids"].shape[1] % multiple == 0
    for row, one in enumerate(samples):
        size = len(one["input_ids"])
        assert batch["input_ids"][row, :size].tolist() == one["input_ids"].tolist()
        assert batch["labels"][row, 1:size].tolist() == one["labels"][1:].tolist()
        assert batch["attention_mask"][row].sum() == size
        assert batch["position_ids"][row].tolist() == list(range(batch["input_ids"].shape[1]))
        assert set(batch["input_ids"][row, size:].tolist()) <= {0}
    assert (batch["labels"] != -100).sum() == targets(samples)
    assert (batch["labels"][:, 0] == -100).all()


@given(sizes=SIZES, multiple=st.sampled_from([1, 8, 64]))
def test_in_one_row(sizes: list[int], multiple: int) -> None:
    samples = [sample(size, 3) for size in sizes]
    batch = pack(samples, pad_token=0, multiple=multiple)
    width, total = batch["input_ids"].shape[1], sum(sizes)
    assert width == -(-total // multiple) * multiple
    bounds = batch["cu_seq_lens_q"].tolist()
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert bounds == [0, *np.cumsum(sizes).tolist(), *([width] if width > total else [])]
    assert batch["max_length_q"] == max(np.diff(bounds))
    assert isinstance(batch["max_length_k"], int)
    for start, end in pairwise(bounds):
        places = np.minimum(np.arange(end - start), max(sizes) - 1)  # padding has none that no sample has
        assert batch["position_ids"][0, start:end].tolist() == places.tolist()
        assert batch["labels"][0, start] == -100
    assert batch["input_ids"][0, :total].tolist() == [n for one in samples for n in one["input_ids"].tolist()]
    assert (batch["labels"][0, total:] == -100).all()
    assert (batch["labels"] != -100).sum() == targets(samples)


def test_fused_samples_are_one_document() -> None:
    batch = pack([sample(3), sample(4)], pad_token=0, multiple=8, fuse=True)
    assert batch["cu_seq_lens_q"].tolist() == [0, 7, 8]
    assert batch["position_ids"].tolist() == [[*range(7), 0]]
    assert batch["labels"][0, 3] == -100


def test_positions_of_padding_stay_among_those_that_a_model_has() -> None:
    batch = pad([sample(3), sample(6)], pad_token=0, multiple=8, positions=6)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 5, 5]] * 2


def test_a_set_length() -> None:
    assert pad([sample(3)], pad_token=0, length=12)["input_ids"].shape == (1, 12)
    assert pack([sample(3)], pad_token=0, length=12)["cu_seq_lens_k"].tolist() == [0, 3, 12]


@pytest.mark.parametrize("fuse", [False, True])
def test_padding_behind_packed_samples_has_no_position_that_they_have_not(fuse: bool) -> None:
    samples = [{"input_ids": (ids := np.arange(size, dtype=np.int32)), "labels": ids} for size in (3, 2)]
    places = pack(samples, pad_token=0, length=16, fuse=fuse)["position_ids"][0].tolist()
    assert places[:5] == ([0, 1, 2, 3, 4] if fuse else [0, 1, 2, 0, 1])
    assert max(places[5:]) == max(places[:5])
