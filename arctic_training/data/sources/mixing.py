"""Chooses the rows of each source in a mixture."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arctic_training.config.sections.data import DataSourceConfig

Indices = npt.NDArray[np.int64]


def sample_mixture(sizes: Sequence[int], sources: Sequence[DataSourceConfig]) -> list[Indices | None]:
    """Returns the indices of the rows to take from each source, int64; None: all of them, in order."""
    counts = _counts(sizes, sources)
    return [
        None if count is None else sample_indices(size, count, source.sample_seed)
        for size, count, source in zip(sizes, counts, sources, strict=True)
    ]


def sample_indices(size: int, count: int, seed: int) -> Indices:
    """Returns ``count`` of ``size`` rows at random, in order, int64 ``[count]``; above ``size`` all rows repeat."""
    rounds, rest = divmod(count, size)
    chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(size)[:rest])
    return np.concatenate([*[np.arange(size)] * rounds, chosen])


def _counts(sizes: Sequence[int], sources: Sequence[DataSourceConfig]) -> list[int | None]:
    """Returns how many rows to take from each source; None: all."""
    if all(source.weight is not None for source in sources):
        # as many rows as there are in these proportions without repeating any
        unit = min(size / float(source.weight or 1) for size, source in zip(sizes, sources, strict=True))
        return [max(1, int(unit * float(source.weight or 1) + 1e-9)) for source in sources]
    counts: list[int | None] = []
    for size, source in zip(sizes, sources, strict=True):
        if source.sample_ratio is not None:
            counts.append(max(1, round(source.sample_ratio * size)))
        else:
            counts.append(source.sample_count)
    return counts
