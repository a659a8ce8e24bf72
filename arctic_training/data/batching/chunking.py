"""Truncates and splits samples and pairs, and cuts concatenated samples into rows."""

from typing import Any

import numpy as np

from arctic_training.data.preparation.samples import Indices, TokenSamples


class SampleSlices:
    """Slices of samples, as samples of their own."""

    def __init__(self, samples: TokenSamples, sample: Indices, start: Indices, end: Indices) -> None:
        """Slice ``i`` is entries ``start[i]`` to ``end[i]`` of every array of sample ``sample[i]``; all int64."""
        self.samples, self.sample, self.start, self.end = samples, sample, start, end
        self.rows: list[Indices] | None = None
        """The slices of each row, where rows are fixed already."""

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.start[index], self.end[index]
        row = self.samples[int(self.sample[index])]
        return {name: value[start:end] if isinstance(value, np.ndarray) else value for name, value in row.items()}

    def lengths(self) -> Indices:
        """Returns the entries of each slice, int64 ``[slices]``."""
        return self.end - self.start

    def select(self, indices: Indices) -> "SampleSlices":
        """Returns the slices at ``indices``, in that order."""
        return SampleSlices(self.samples, self.sample[indices], self.start[indices], self.end[indices])


def truncate(samples: TokenSamples, max_length: int) -> SampleSlices:
    """Returns the first ``max_length`` entries of every sample."""
    sizes = samples.lengths()
    return SampleSlices(samples, np.arange(len(sizes)), np.zeros_like(sizes), np.minimum(sizes, max_length))


def split_samples(samples: TokenSamples, max_length: int) -> SampleSlices:
    """Returns every sample in slices of ``max_length`` entries, the last one shorter."""
    sizes = samples.lengths()
    counts = -(-sizes // max_length)
    sample = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(len(sample)) - np.repeat(np.cumsum(counts) - counts, counts)) * max_length
    return SampleSlices(samples, sample, start, np.minimum(start + max_length, sizes[sample]))


def concat_and_chunk(
    samples: TokenSamples, length: int, order: Indices, *, drop_last: bool = False
) -> tuple[SampleSlices, list[Indices]]:
    """Concatenates all samples in ``order``, and cuts them every ``length`` tokens.

    Returns the slices, and the slices of each row; the last row is shorter, and dropped with ``drop_last``.
    """
    sizes = samples.lengths()[order]
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    total -= total % length if drop_last else 0
    bounds = np.union1d(ends[ends < total], np.arange(0, total, length))
    until = np.append(bounds[1:], total)[: len(bounds)]
    place = np.searchsorted(ends, bounds, "right")
    begins = (ends - sizes)[place]
    slices = SampleSlices(samples, order[place], bounds - begins, until - begins)
    rows = np.flatnonzero(bounds % length == 0)
    return slices, np.split(np.arange(len(bounds)), rows[1:]) if len(bounds) else []


class TruncatedPairs:
    """Pairs of ``input_ids`` and ``completion_ids`` without a part of their tokens, as samples of their own."""

    def __init__(self, samples: TokenSamples, heads: Indices, tails: Indices, completions: Indices) -> None:
        """Pair ``i`` has the first ``heads[i]`` and the last ``tails[i]`` entries of the ``input_ids`` of
        ``samples[i]``, and the first ``completions[i]`` of its ``completion_ids``; all int64 ``[pairs]``."""
        self.samples, self.heads, self.tails, self.completions = samples, heads, tails, completions

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair, head, tail = self.samples[index], self.heads[index], self.tails[index]
        ids = pair["input_ids"]
        kept = np.concatenate([ids[:head], ids[len(ids) - tail :]])
        return {**pair, "input_ids": kept, "completion_ids": pair["completion_ids"][: self.completions[index]]}


class ConcatenatedRows:
    """Rows of several slices, each row a sample of its own."""

    def __init__(self, slices: SampleSlices, rows: list[Indices]) -> None:
        self.slices, self.rows = slices, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        parts = [self.slices[int(number)] for number in self.rows[index]]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def lengths(self) -> Indices:
        """Returns the tokens of each row, int64 ``[rows]``."""
        sizes = self.slices.lengths()
        return np.array([sizes[row].sum() for row in self.rows], np.int64)
