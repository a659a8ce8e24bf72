"""Sequence parallelism: ranks of a group hold a part of each sequence, and exchange tokens for heads in attention.

After Jacobs et al. 2023 (DeepSpeed Ulysses, arXiv 2309.14509): everything but attention is computed token by token, so
a rank needs only its part of a sequence; for attention an all-to-all gives it all tokens of some of the heads.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from arctic_training.distributed import process_group
from arctic_training.errors.types import RecipeError, SampleError
from arctic_training.loss.targets import IGNORE_INDEX, count_targets
from arctic_training.loss.tokens import NO_TOKENS, TokenCounts, count_tokens

KEY = "sequence_share"
"""The key of a batch, and the keyword argument of attention, that carries a `SequenceShard`."""

num_all_to_all = 0
"""Number of all-to-alls that this process has run."""


@dataclass(frozen=True)
class SequenceShard:
    """Describes the sequences of which this rank's batch is a part."""

    size: int
    """Number of ranks that share a sequence."""
    targets: tuple[int, ...] = ()
    """Number of labels in the part of each rank of the group."""
    counts: TokenCounts = NO_TOKENS
    """The tokens of the sequences, on the first rank of the group; on the others none."""


def check_world_size(size: int, world: int) -> None:
    """Raises `RecipeError` when ``world`` ranks do not divide into sequence-parallel groups of ``size``."""
    if world % size:
        raise RecipeError(
            f"sequence_parallel_size: {size} processes share a sequence, and the run has {world}; "
            f"start a multiple of {size}, such as --num_gpus {size}"
        )


def shard_batch(batch: Mapping[str, Any], size: int, index: int, *, once: Collection[str] = ()) -> dict[str, Any]:
    """Returns part ``index`` of ``size`` of every sequence in a language model's batch on the CPU.

    The rows of ``input_ids`` ([B, T], int64; padded on the right, or packed with ``cu_seq_lens_q``) become one row of
    documents, [1, ceil(B * T / size) * size], of which every rank gets an equal part, [1, C]; so does every other
    tensor of that shape. ``position_ids`` count from the beginning of each document, and ``cu_seq_lens_q`` (int32)
    describes the full row. ``shift_labels``, which transformers knows too, are the labels of the next tokens, including
    the first token of the next part. ``once`` names the keys that count something of full rows: the first rank of the
    group keeps their values, and the others have 0.

    Raises `SampleError` for a batch without ``input_ids`` [rows, tokens], or padded on the left.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise SampleError("sequence parallelism expects a batch with input_ids [rows, tokens]")
    rows, tokens = ids.shape
    ends: Tensor | None = batch.get("cu_seq_lens_q")
    if ends is None:
        mask: Tensor | None = batch.get("attention_mask")
        if mask is not None and bool((mask.diff(dim=1) > 0).any()):
            raise SampleError("sequence parallelism expects padding on the right of a row, not on the left")
        ends = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32)
    added = -ids.numel() % size
    row = {name: value.reshape(1, -1) for name, value in batch.items() if _per_token(value, ids)}
    row.setdefault("position_ids", torch.arange(tokens).repeat(rows)[None])
    row.pop("attention_mask", None)
    row = {name: nn.functional.pad(value, (0, added)) for name, value in row.items()}
    targets: tuple[int, ...] = ()
    if "labels" in row:
        labels = row["labels"].index_fill(1, ends[:-1].long(), IGNORE_INDEX)
        labels[:, ids.numel() :] = IGNORE_INDEX
        shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        row |= {"labels": labels, "shift_labels": shifted}
        targets = tuple(int((part != IGNORE_INDEX).sum()) for part in shifted.chunk(size, dim=1))
    if added:  # a document of its own
        row["position_ids"][:, ids.numel() :] = torch.arange(added)
        ends = torch.cat([ends, ends[-1:] + added])
    longest = int(ends.diff().max())
    rest = {name: value for name, value in batch.items() if name not in row and name != "attention_mask"}
    if index:
        rest |= {name: value * 0 for name, value in rest.items() if name in once}
    if targets:
        rest["num_targets"] = targets[index]
    own = {name: value.chunk(size, dim=1)[index].clone() for name, value in row.items()}
    documents = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {
        **rest,
        **own,
        **documents,
        KEY: SequenceShard(size, targets, NO_TOKENS if index else count_tokens(batch)),
    }


def _per_token(value: object, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == ids.shape


def gather_seq_scatter_heads(parts: Sequence[Tensor], size: int) -> list[Tensor]:
    """Exchanges some tokens of all heads for all tokens of some heads: [1, H, C, D] to [1, H / size, C * size, D].

    ``parts`` are queries, keys and values of one dtype; the number of query heads is a multiple of ``size``. Key and
    value heads that are fewer than ``size`` are repeated.
    """
    flat, shapes = [], []
    for part in parts:
        heads = part.shape[1]
        part = part[0].repeat_interleave(math.lcm(heads, size) // heads, dim=0)
        each, tokens, width = part.shape[0] // size, part.shape[1], part.shape[2]
        flat.append(part.reshape(size, each, tokens, width).transpose(1, 2).flatten(2))
        shapes.append((each, width))
    swapped = _all_to_all(torch.cat(flat, dim=-1), size).flatten(0, 1)
    pieces = torch.split(swapped, [heads * width for heads, width in shapes], dim=-1)
    return [piece.reshape(-1, *shape).transpose(0, 1)[None] for piece, shape in zip(pieces, shapes, strict=True)]


def gather_heads_scatter_seq(out: Tensor, size: int) -> Tensor:
    """Exchanges all tokens of some heads, [1, T, h, D], for some tokens of all heads, [1, T / size, h * size, D]."""
    _, tokens, heads, width = out.shape
    return _all_to_all(out.reshape(size, tokens // size, heads, width), size).transpose(0, 1).flatten(1, 2)[None]


def gather_target_values(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Gathers one value per label from the ranks of the group: [targets of this rank] to [targets of all], in order.

    Differentiable; returns ``values`` itself where sequences are not shared. For a loss that is not a sum over labels:
    where each rank computes it, only one may count it (`shard_batch`'s ``once``).
    """
    shard: SequenceShard | None = batch.get(KEY)
    if shard is None:
        return values
    gathered: Tensor = _Gather.apply(values, shard)  # type: ignore[no-untyped-call]
    return gathered


def target_samples(batch: Mapping[str, Any]) -> Tensor:
    """Returns the sample of every target of ``batch``, by its number in the batch: int64 ``[targets]``, row by row.

    The order is that of `token_losses`, so that ``batch["weight"][target_samples(batch)]`` has the value of a column
    for each of its losses, and ``index_add`` sums losses by sample. ``labels`` are int64 ``[rows, T]``, and -100 marks
    what is no target, as it does the first token of every sample of a decoder-only model. A sample is a row, or a
    document of ``cu_seq_lens_q``. With sequence parallelism the targets are those of this rank's part, and the samples
    those of the full rows.
    """
    shifted = batch.get("shift_labels")
    labels: Tensor = batch["labels"] if shifted is None else shifted
    count = count_targets(labels, shifted=True)
    is_target = labels.flatten() != IGNORE_INDEX
    nonzero = is_target.nonzero() if count is None else torch.nonzero_static(is_target, size=count)
    positions, ends = nonzero[:, 0], batch.get("cu_seq_lens_q")
    if ends is None:
        return positions // labels.shape[1]
    shard: SequenceShard | None = batch.get(KEY)
    first = 0 if shard is None else process_group.rank() % shard.size * labels.shape[1]
    return torch.searchsorted(ends[1:], positions + first, right=True)


def _all_to_all(tensor: Tensor, size: int) -> Tensor:
    swapped: Tensor = _AllToAll.apply(tensor.contiguous(), size)  # type: ignore[no-untyped-call]
    return swapped


class _AllToAll(torch.autograd.Function):
    """Sends entry ``i`` of the first dimension, [size, ...], to rank ``i`` of the group."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, size: int) -> Tensor:
        global num_all_to_all
        num_all_to_all += 1
        ctx.size = size
        out = torch.empty_like(tensor)
        dist.all_to_all_single(out, tensor, group=process_group.rank_group(size))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(upstream[0], memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, upstream[0].contiguous(), group=process_group.rank_group(ctx.size))
        return out, None


class _Gather(torch.autograd.Function):
    """Concatenates the values of all ranks of the group, [targets]; the gradients are summed over them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: SequenceShard) -> Tensor:
        index = process_group.rank() % shard.size
        start = sum(shard.targets[:index])
        ctx.size, ctx.own = shard.size, slice(start, start + shard.targets[index])
        out = values.new_zeros(sum(shard.targets))
        out[ctx.own] = values
        dist.all_reduce(out, group=process_group.rank_group(shard.size))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        total = upstream[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=process_group.rank_group(ctx.size))
        return total[ctx.own], None
