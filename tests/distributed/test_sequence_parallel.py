"""A batch in parts is the batch: no token, label or document is lost between them, and what is swapped comes back."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training.data.batching.collate import pack, pad
from arctic_training.distributed import process_group, sequence_parallel
from arctic_training.errors.types import SampleError
from arctic_training.loss.targets import IGNORE_INDEX
from tests import processes


def samples_of(draw: st.DrawFn) -> list[dict[str, Any]]:
    samples = []
    for number in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 9))
        ids = np.arange(size, dtype=np.int32) + 100 * (number + 1)
        learned = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        samples.append({"input_ids": ids, "labels": np.where(learned, ids, IGNORE_INDEX).astype(np.int32)})
    return samples


@given(st.data(), st.integers(1, 5), st.booleans(), st.sampled_from([1, 8]))
@settings(max_examples=200, deadline=None)
def test_the_parts_are_the_whole(data: st.DataObject, size: int, packs: bool, multiple: int) -> None:
    samples = data.draw(st.composite(samples_of)())
    batch = (pack if packs else pad)(samples, pad_token=7, multiple=multiple)
    batch |= {"weights": torch.rand(batch["input_ids"].shape), "pairs": torch.ones(3), "tokens": 4, "name": "of a row"}
    parts = [sequence_parallel.shard_batch(batch, size, index, once=("pairs", "tokens")) for index in range(size)]
    widths = {part[name].shape for part in parts for name in ("input_ids", "labels", "shift_labels", "position_ids")}
    assert len(widths) == 1  # every process computes as much
    names = ("input_ids", "labels", "shift_labels", "position_ids", "weights")
    row = {name: torch.cat([part[name] for part in parts], dim=1) for name in names}
    count = batch["input_ids"].numel()
    for name in ("input_ids", "weights"):
        assert torch.equal(row[name][0, :count], batch[name].flatten())
    # every (token, next label) of the batch, and no other
    expected = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    if packs:
        expected = torch.nn.functional.pad(batch["labels"][0, 1:], (0, 1), value=IGNORE_INDEX)
    assert torch.equal(row["shift_labels"][0, :count], expected)
    assert (row["shift_labels"][0, count:] == IGNORE_INDEX).all()
    # documents: those of the pack, or one a row; positions are those within them
    ends = parts[0]["cu_seq_lens_q"]
    assert all(torch.equal(part["cu_seq_lens_q"], ends) for part in parts)
    assert ends[0] == 0 and ends[-1] == row["input_ids"].numel() and bool((ends.diff() > 0).all())
    assert parts[0]["max_length_q"] == int(ends.diff().max())
    if packs:
        inside = torch.cat([torch.arange(int(n)) for n in ends.diff()])
        inside[:count].clamp_(max=max(len(one["input_ids"]) for one in samples) - 1)  # those of padding end there
        assert torch.equal(row["position_ids"][0], inside)
        assert torch.equal(ends[: len(batch["cu_seq_lens_q"])], batch["cu_seq_lens_q"])
    # what is counted is counted once
    assert all(part[sequence_parallel.KEY].targets == parts[0][sequence_parallel.KEY].targets for part in parts)
    assert parts[0][sequence_parallel.KEY].targets == tuple(
        int((part["shift_labels"] != IGNORE_INDEX).sum()) for part in parts
    )
    assert [int(part["pairs"].sum()) for part in parts] == [3] + [0] * (size - 1)
    assert [part["tokens"] for part in parts] == [4] + [0] * (size - 1)
    assert all(part["name"] == "of a row" and "attention_mask" not in part for part in parts)


def test_what_is_no_batch_of_sequences_is_refused() -> None:
    with pytest.raises(SampleError, match="input_ids"):
        sequence_parallel.shard_batch({"rows": torch.ones(4, 2)}, 2, 0)
    left = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    with pytest.raises(SampleError, match="on the right"):
        sequence_parallel.shard_batch(left, 2, 0)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def tensors(heads: int, key_heads: int, tokens: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(heads * 100 + key_heads)
    shapes = [(heads, 6), (key_heads, 6), (key_heads, 4)]  # values may be of another width
    return [torch.randn(1, count, tokens, width, generator=draw) for count, width in shapes]


def attend_together(size: int, heads: int, key_heads: int, tokens: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns the gradients and the output of this process's part."""
    process_group.init_process_group()
    index, before = process_group.rank() % size, sequence_parallel.num_all_to_all
    parts = [part.chunk(size, dim=2)[index].clone().requires_grad_() for part in tensors(heads, key_heads, tokens)]
    out = sequence_parallel.gather_heads_scatter_seq(
        attend(*sequence_parallel.gather_seq_scatter_heads(parts, size)), size
    )
    weights = torch.randn(1, tokens, heads, 4, generator=torch.Generator().manual_seed(1)).chunk(size, dim=1)[index]
    (out * weights).sum().backward()
    assert sequence_parallel.num_all_to_all == before + 2
    gradients = [part.grad for part in parts if part.grad is not None]
    return gradients, out.detach()


@pytest.mark.parametrize(("world", "heads", "key_heads"), [(2, 4, 4), (2, 4, 2), (2, 6, 1), (2, 6, 3), (4, 8, 2)])
def test_attention_that_is_shared_is_attention(world: int, heads: int, key_heads: int) -> None:
    tokens = 4 * world
    full = [part.requires_grad_() for part in tensors(heads, key_heads, tokens)]
    out = attend(*full)
    (out * torch.randn(1, tokens, heads, 4, generator=torch.Generator().manual_seed(1))).sum().backward()
    results = processes.share(attend_together, world, world, heads, key_heads, tokens)
    torch.testing.assert_close(torch.cat([part for _, part in results], dim=1), out.detach(), rtol=0, atol=1e-6)
    for number, tensor in enumerate(full):
        got = torch.cat([gradients[number] for gradients, _ in results], dim=2)
        torch.testing.assert_close(got, tensor.grad, rtol=0, atol=2e-6)


def test_neighbours_share_and_others_do_not() -> None:
    """Four processes in two groups: each group attends to its own sequence."""
    tokens, full = 6, tensors(4, 2, 6)
    results = processes.share(attend_together, 4, 2, 4, 2, tokens)
    expected = attend(*full)
    for group in (results[:2], results[2:]):
        torch.testing.assert_close(torch.cat([part for _, part in group], dim=1), expected, rtol=0, atol=1e-6)


def gather(targets: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    process_group.init_process_group()
    size, rank = len(targets), process_group.rank()
    start = sum(targets[:rank])
    mine = torch.arange(start, start + targets[rank], dtype=torch.float32).requires_grad_()
    assert sequence_parallel.gather_target_values(mine, {}) is mine
    gathered = sequence_parallel.gather_target_values(
        mine, {sequence_parallel.KEY: sequence_parallel.SequenceShard(size, targets)}
    )
    if rank == 0:  # only one counts it
        (gathered.square().sum() / 2).backward()
    else:
        (gathered.sum() * 0).backward()
    assert mine.grad is not None
    return gathered.detach(), mine.grad


@pytest.mark.parametrize("targets", [(3, 2), (0, 4), (2, 0), (0, 0)])
def test_what_each_has_is_gathered_in_order_and_its_gradient_comes_back(targets: tuple[int, ...]) -> None:
    everything = torch.arange(sum(targets), dtype=torch.float32)
    results = processes.share(gather, 2, targets)
    for gathered, _ in results:
        assert torch.equal(gathered, everything)
    assert torch.equal(torch.cat([gradient for _, gradient in results]), everything)
