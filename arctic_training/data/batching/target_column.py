"""A column with something for each label of a sample, such as what a teacher predicts there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.preparation.samples import Indices, SampleList
from arctic_training.loss.targets import IGNORE_INDEX


@dataclass(frozen=True)
class TargetColumn:
    """The entries of the labels of all samples, one sample after the other."""

    values: npt.NDArray[Any]
    """``[labels of all samples, ...]``."""
    offsets: Indices
    """Where the entries of each sample begin, and where the last one's end: int64 ``[samples + 1]``."""

    def __getitem__(self, samples: Sequence[int]) -> npt.NDArray[Any]:
        """Returns the entries of ``samples``, one after the other: ``[labels, ...]``."""
        return self.values[entries_of(self.offsets, samples)]


def entries_of(offsets: Indices, samples: Sequence[int]) -> Indices:
    """Returns where the entries of ``samples`` are in a column with these ``offsets``: int64 ``[entries]``."""
    ranges = [np.arange(offsets[sample], offsets[sample + 1]) for sample in samples]
    return np.concatenate(ranges) if ranges else np.empty(0, np.int64)


def target_offsets(samples: SampleList) -> Indices:
    """Returns the ``offsets`` of a `TargetColumn` of samples of tokens: the first token of a sample is no label, and
    every other is one where a sample has no ``labels``."""
    counts = [0]
    for index in range(len(samples)):
        sample = samples[index]
        labels = sample.get("labels", sample["input_ids"])
        counts.append(int((labels[1:] != IGNORE_INDEX).sum()))
    return np.cumsum(counts, dtype=np.int64)
