"""Samples cut at a length, and rows cut out of all samples one behind the other."""

from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class SampleSlices:
    """Stretches of samples, as samples of their own."""

    def __init__(self, samples: Any, sample: Indices, start: Indices, end: Indices) -> None:
        """Piece ``i`` is entries ``start[i]`` up to ``end[i]`` of every list of sample ``sample[i]``."""
        self.samples, self.sample, self.start, self.end = samples, sample, start, end
        self.rows: list[Indices] | None = None
        """Which pieces make up each row, when that is settled."""

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.start[index], self.end[index]
        row = self.samples[int(self.sample[index])]
        return {name: value[start:end] if isinstance(value, np.ndarray) else value for name, value in row.items()}

    def lengths(self) -> Indices:
        return self.end - self.start

    def select(self, indices: Indices) -> "SampleSlices":
        """The pieces at ``indices``, in that order."""
        return SampleSlices(self.samples, self.sample[indices], self.start[indices], self.end[indices])


def truncate(samples: Any, longest: int) -> SampleSlices:
    """Every sample up to its entry ``longest``."""
    sizes = samples.lengths()
    return SampleSlices(samples, np.arange(len(sizes)), np.zeros_like(sizes), np.minimum(sizes, longest))


def split_samples(samples: Any, longest: int) -> SampleSlices:
    """Every sample in pieces of ``longest`` entries, the last one shorter."""
    sizes = samples.lengths()
    counts = -(-sizes // longest)
    sample = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(len(sample)) - np.repeat(np.cumsum(counts) - counts, counts)) * longest
    return SampleSlices(samples, sample, start, np.minimum(start + longest, sizes[sample]))


def concat_and_chunk(
    samples: Any, length: int, order: Indices, *, drop_last: bool = False
) -> tuple[SampleSlices, list[Indices]]:
    """All samples in ``order``, one behind the other, cut every ``length`` tokens.

    Returns the pieces, and which of them make up each row; the last row is shorter, and dropped with ``drop_last``.
    """
    sizes = samples.lengths()[order]
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    total -= total % length if drop_last else 0
    bounds = np.union1d(ends[ends < total], np.arange(0, total, length))
    until = np.append(bounds[1:], total)[: len(bounds)]
    place = np.searchsorted(ends, bounds, "right")
    begins = (ends - sizes)[place]
    pieces = SampleSlices(samples, order[place], bounds - begins, until - begins)
    rows = np.flatnonzero(bounds % length == 0)
    return pieces, np.split(np.arange(len(bounds)), rows[1:]) if len(bounds) else []


class ConcatenatedRows:
    """Rows of several pieces, each row a sample of its own."""

    def __init__(self, pieces: SampleSlices, rows: list[Indices]) -> None:
        self.pieces, self.rows = pieces, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        parts = [self.pieces[int(piece)] for piece in self.rows[index]]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def lengths(self) -> Indices:
        sizes = self.pieces.lengths()
        return np.array([sizes[row].sum() for row in self.rows], np.int64)
