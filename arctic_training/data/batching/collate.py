"""Collates samples of tokens into the batch of a language model, padded or packed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arctic_training.loss.targets import IGNORE_INDEX

Sample = Mapping[str, npt.NDArray[np.int32]]


def pad(
    samples: Sequence[Sample], *, pad_token: int, multiple: int = 1, length: int = 0, positions: int | None = None
) -> dict[str, torch.Tensor]:
    """Returns ``input_ids``, ``labels``, ``attention_mask`` and ``position_ids``, all int64 [samples, T].

    T is ``length``, or that of the longest sample rounded up to a multiple of ``multiple``; padding is on the right.
    Positions continue through the padding, since transformers takes positions that restart for those of another
    document. ``positions`` is the number of positions that the model has.
    """
    ids, mask = pad_rows([sample["input_ids"] for sample in samples], pad_token, multiple=multiple, length=length)
    labels, _ = pad_rows([sample["labels"] for sample in samples], IGNORE_INDEX, multiple=multiple, length=length)
    labels[:, :1] = IGNORE_INDEX
    width, longest = ids.shape[1], max(len(sample["input_ids"]) for sample in samples)
    places = torch.arange(width).clamp(max=max(positions or width, longest) - 1)
    position_ids = places.repeat(len(samples), 1)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": position_ids}


def pad_rows(
    rows: Sequence[npt.NDArray[np.int32]], fill: int, *, multiple: int = 1, longest: int | None = None, length: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``rows`` filled up with ``fill`` on the right, and their mask, which is 0 there: int64 [rows, T] both.

    T is ``length``, or that of the longest row rounded up to a multiple of ``multiple``, but at most ``longest``, which
    no row exceeds.
    """
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    rounded = _rounded(int(sizes.max()), multiple)
    inside = np.arange(length or min(rounded, longest or rounded)) < sizes[:, None]
    padded = np.full(inside.shape, fill, np.int64)
    padded[inside] = np.concatenate(rows)
    return torch.from_numpy(padded), torch.from_numpy(inside.astype(np.int64))


def pad_pairs(
    sources: Sequence[npt.NDArray[np.int32]],
    targets: Sequence[npt.NDArray[np.int32]],
    *,
    pad_token: int,
    multiple: int = 1,
    longest_source: int,
    longest_target: int,
) -> dict[str, torch.Tensor]:
    """Returns the batch of an encoder-decoder: ``input_ids`` and ``attention_mask``, int64 [rows, S], of ``sources``,
    and ``labels``, int64 [rows, T], of ``targets``, where -100 is padding.

    S and T are multiples of ``multiple``, but at most ``longest_source`` and ``longest_target``.
    """
    input_ids, mask = pad_rows(sources, pad_token, multiple=multiple, longest=longest_source)
    labels, _ = pad_rows(targets, IGNORE_INDEX, multiple=multiple, longest=longest_target)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def pack(
    samples: Sequence[Sample], *, pad_token: int, multiple: int = 1, length: int = 0, fuse: bool = False
) -> dict[str, Any]:
    """Returns the samples concatenated in one row, each a document of its own, without a T x T mask.

    ``input_ids``, ``labels`` and ``position_ids`` are int64 [1, T]; ``cu_seq_lens_q`` and ``cu_seq_lens_k``, int32
    [documents + 1], are the boundaries of documents, ``max_length_q`` and ``max_length_k``, int, the longest document.
    The first label of each sample is -100. T is ``length``, or the length of all samples rounded up to a multiple of
    ``multiple``; the padding is one more document, of ``pad_token`` and without labels, whose positions end where those
    of the longest sample do: a model may have no more positions. ``fuse`` makes all samples one document.
    """
    sizes = np.fromiter((len(sample["input_ids"]) for sample in samples), np.int64, len(samples))
    total = int(sizes.sum())
    width = length or _rounded(total, multiple)
    ids = np.full((1, width), pad_token, np.int64)
    labels = np.full((1, width), IGNORE_INDEX, np.int64)
    np.concatenate([sample["input_ids"] for sample in samples], out=ids[0, :total], casting="same_kind")
    np.concatenate([sample["labels"] for sample in samples], out=labels[0, :total], casting="same_kind")
    labels[0, np.cumsum(sizes) - sizes] = IGNORE_INDEX
    documents = [total] if fuse else sizes.tolist()
    if width > total:
        documents.append(width - total)
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(documents, out=bounds[1:])
    places = np.arange(width) - np.repeat(bounds[:-1], documents)
    np.minimum(places, places[:total].max(), out=places)
    boundaries = torch.from_numpy(bounds.astype(np.int32))
    longest = max(documents)
    return {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(places[None]),
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
