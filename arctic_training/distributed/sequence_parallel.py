"""Sequence parallelism: a few processes share every sequence, and swap tokens for heads where attention needs it whole.

After Jacobs et al. 2023 (DeepSpeed Ulysses, arXiv 2309.14509): everything but attention is computed token by token, so
that a process needs no more than its share of a sequence; for attention each gets all tokens of some of the heads.
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
from arctic_training.loss.targets import IGNORE_INDEX

KEY = "sequence_share"
"""What a batch that holds a `SequenceShard` of its sequences tells it under; attention is told it by this name too."""

num_all_to_all = 0
"""How often this process has swapped tokens for heads, or heads for tokens."""


@dataclass(frozen=True)
class SequenceShard:
    """What a process is told of the sequences of which its batch is a part."""

    size: int
    """Processes that share them."""
    targets: tuple[int, ...] = ()
    """The targets of each process's part, in order."""


def check_world_size(size: int, world: int) -> None:
    """Raises `RecipeError` when ``world`` processes cannot be parted into groups of ``size`` that share sequences."""
    if world % size:
        told = f"{size} processes share a sequence, and the run has {world}"
        raise RecipeError(f"sequence_parallel_size: {told}; start a multiple of {size}, such as --num_gpus {size}")


def shard_batch(batch: Mapping[str, Any], size: int, index: int, *, once: Collection[str] = ()) -> dict[str, Any]:
    """The part ``index`` of ``size`` of every sequence of a language model's batch, which is in the main memory.

    The rows of ``input_ids`` [B, T], padded on the right, or packed and told by ``cu_seq_lens_q``, become one row of
    documents, [1, ceil(B * T / size) * size], of which every process gets an equal part, [1, C]; so does every other
    tensor of that shape. ``position_ids`` count from the beginning of each document, and ``cu_seq_lens_q`` tells of the
    whole row. ``shift_labels``, which transformers knows too, are the labels of the next tokens, the first token of the
    next part among them. Under ``once`` are the keys that count something of whole rows: the first process has them,
    and the others 0.

    Raises `SampleError` for a batch that is none of a language model, or is padded on the left.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise SampleError("a batch with input_ids [rows, tokens] is wanted where processes share sequences")
    rows, tokens = ids.shape
    ends: Tensor | None = batch.get("cu_seq_lens_q")
    if ends is None:
        _require_padding_behind(batch.get("attention_mask"))
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
    told = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {**rest, **own, **told, KEY: SequenceShard(size, targets)}


def _per_token(value: Any, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == ids.shape


def _require_padding_behind(mask: Tensor | None) -> None:
    if mask is not None and bool((mask.diff(dim=1) > 0).any()):
        raise SampleError("padding is wanted behind a row, not before it, where processes share sequences")


def gather_seq_scatter_heads(parts: Sequence[Tensor], size: int) -> list[Tensor]:
    """From all heads of some tokens to some heads of all: [1, H, C, D] each to [1, H / size, C * size, D].

    ``parts`` are queries, keys and values. Key heads of which there are too few to deal out are given to several
    processes. The query heads are a multiple of ``size``.
    """
    flat, shapes = [], []
    for part in parts:
        heads = part.shape[1]
        part = part[0].repeat_interleave(math.lcm(heads, size) // heads, dim=0)
        each, tokens, width = part.shape[0] // size, part.shape[1], part.shape[2]
        flat.append(part.reshape(size, each, tokens, width).transpose(1, 2).flatten(2))
        shapes.append((each, width))
    swapped = _swap(torch.cat(flat, dim=-1), size).flatten(0, 1)
    pieces = torch.split(swapped, [heads * width for heads, width in shapes], dim=-1)
    return [piece.reshape(-1, *shape).transpose(0, 1)[None] for piece, shape in zip(pieces, shapes, strict=True)]


def gather_heads_scatter_seq(out: Tensor, size: int) -> Tensor:
    """From some heads of all tokens, [1, T, h, D], to all heads of some tokens, [1, T / size, h * size, D]."""
    _, tokens, heads, width = out.shape
    return _swap(out.reshape(size, tokens // size, heads, width), size).transpose(0, 1).flatten(1, 2)[None]


def gather_target_values(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """One value of every target of whole sequences, in order, from those of this process's targets; differentiable.

    ``values`` itself where sequences are not shared. For a loss that is not a sum over targets: where each process
    computes it, only one may count it (`shard_batch`'s ``once``).
    """
    told: SequenceShard | None = batch.get(KEY)
    if told is None:
        return values
    gathered: Tensor = _Gathered.apply(values, told)  # type: ignore[no-untyped-call]
    return gathered


def _swap(tensor: Tensor, size: int) -> Tensor:
    swapped: Tensor = _Swapped.apply(tensor.contiguous(), size)  # type: ignore[no-untyped-call]
    return swapped


class _Swapped(torch.autograd.Function):
    """Part ``i`` of the first dimension, [size, ...], goes to process ``i``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, size: int) -> Tensor:
        global num_all_to_all
        num_all_to_all += 1
        ctx.size = size
        out = torch.empty_like(tensor)
        dist.all_to_all_single(out, tensor, group=process_group.sequence_parallel_group(size))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        out = torch.empty_like(upstream[0], memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, upstream[0].contiguous(), group=process_group.sequence_parallel_group(ctx.size))
        return out, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, told: SequenceShard) -> Tensor:
        index = process_group.rank() % told.size
        start = sum(told.targets[:index])
        ctx.size, ctx.own = told.size, slice(start, start + told.targets[index])
        out = values.new_zeros(sum(told.targets))
        out[ctx.own] = values
        dist.all_reduce(out, group=process_group.sequence_parallel_group(told.size))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        total = upstream[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=process_group.sequence_parallel_group(ctx.size))
        return total[ctx.own], None
