"""Tokens of batches: what was collated counts, and what only fills a batch does not."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.batching.collate import pack, pad
from arctic_training.distributed.sequence_parallel import KEY, shard_batch
from arctic_training.loss.tokens import TokenCounts, count_tokens

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=5)


def documents(lengths: list[int], labelled: int, fillers: int) -> list[dict[str, Any]]:
    """Documents whose last ``labelled`` tokens have labels, and ``fillers`` that have none."""
    rows = []
    for length in lengths + [4] * fillers:
        labels = np.full(length, -100, np.int32)
        labels[max(1, length - labelled) :] = 7
        rows.append({"input_ids": np.arange(length, dtype=np.int32), "labels": labels})
    for row in rows[len(lengths) :]:
        row["labels"][:] = -100
    return rows


@given(lengths=LENGTHS, labelled=st.integers(1, 9), fillers=st.integers(0, 2), multiple=st.sampled_from([1, 8]))
def test_documents_count_and_fillers_do_not(lengths: list[int], labelled: int, fillers: int, multiple: int) -> None:
    rows = documents(lengths, labelled, fillers)
    labels = sum(min(labelled, length - 1) for length in lengths)
    expected = (sum(lengths), sum(length * length for length in lengths), labels)
    for batch in (pad(rows, pad_token=0, multiple=multiple), pack(rows, pad_token=0, multiple=multiple)):
        assert count_tokens(batch) == expected
        shards = [shard_batch(batch, 2, index)[KEY].counts for index in range(2)]
        assert tuple(np.sum(shards, axis=0)) == expected


def test_batches_without_token_labels() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    texts = {"input_ids": torch.zeros(2, 4, dtype=torch.int64), "attention_mask": mask}
    assert count_tokens({**texts, "labels": torch.tensor([0, 1])}) == (5, 13, 0)
    assert count_tokens({"anchor": texts, "candidates": texts, "row_weights": torch.ones(2)}) == (10, 26, 0)
    for other in ({"rows": torch.zeros(2, 4)}, (torch.zeros(2), 1), {"prompts": [np.arange(3)]}):
        assert count_tokens(other) == TokenCounts()
