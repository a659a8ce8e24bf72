"""The order of the rows: a function of seed and epoch, so iteration can start at any row without a stored state."""

from dataclasses import dataclass, field

import numpy as np

from arctic_training.data.preparation.samples import Indices


@dataclass
class GlobalOrder:
    """Assigns rows to the micro-batches of each data rank.

    The order of an epoch is one permutation of all rows, the same on every rank. The micro-batches of all ranks that
    begin at one row take the next ``micro_batch_size * world_size`` of it, in the order of ranks: the rows of a step do
    not depend on how it is split into ranks and micro-batches. With ``epoch_length`` the permutations of the passes
    over the data follow one another, and each epoch takes the next rows of them.
    """

    size: int
    """Number of rows."""
    micro_batch_size: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True
    accumulation_steps: int = 1
    """Micro-batches of one step."""
    drop_last: bool = False
    """Drop the rows that do not fill a last step; else some of its micro-batches are short, or empty."""
    epoch_length: int = 0
    """Steps of an epoch; 0: an epoch is a pass over the data."""
    _passes: range = field(default=range(0), init=False, repr=False, compare=False)
    _order: Indices = field(default_factory=lambda: np.empty(0, np.int64), init=False, repr=False, compare=False)
    """The rows of ``_passes``, one after the other."""

    @property
    def global_micro_batch_size(self) -> int:
        """Rows of one micro-batch on all ranks together."""
        return self.micro_batch_size * self.world_size

    def __len__(self) -> int:
        """Returns the micro-batches in an epoch, the same number on every rank."""
        return len(self.batch_starts())

    @property
    def rows(self) -> int:
        """Rows that an epoch reads."""
        step = self.global_micro_batch_size * self.accumulation_steps
        if self.epoch_length:
            return self.epoch_length * step
        return self.size // step * step if self.drop_last else self.size

    def first_row(self, epoch: int) -> int:
        """Returns the rows that precede those of ``epoch``, of all passes over the data one after the other."""
        return epoch * (self.rows if self.epoch_length else self.size)

    def batch_starts(self, row: int = 0) -> range:
        """Returns the positions in the order at which the micro-batches of all ranks begin, from ``row`` on."""
        return range(row, self.rows, self.global_micro_batch_size)

    def permutation(self, epoch: int) -> Indices:
        """Returns the order of ``epoch``, int64 ``[size]``, or ``[rows]`` with ``epoch_length``."""
        first, end = self.first_row(epoch), self.first_row(epoch + 1)
        passes = range(first // self.size, -(-end // self.size)) if self.size else range(0)
        if passes != self._passes:
            self._order = np.concatenate([np.empty(0, np.int64), *map(self._pass, passes)])
            self._passes = passes
        start = first - passes.start * self.size
        return self._order[start : start + end - first]

    def _pass(self, number: int) -> Indices:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.Generator(np.random.PCG64([self.seed, number])).permutation(self.size)

    def rank_indices(self, start: int) -> range:
        """Returns this rank's positions in the order, in the micro-batches that begin at ``start``."""
        first = start + self.rank * self.micro_batch_size
        return range(first, first + self.micro_batch_size)

    def batch(self, epoch: int, start: int) -> Indices:
        """Returns this rank's rows of the micro-batches that begin at ``start``, int64; at the end fewer, or none."""
        indices = self.rank_indices(start)
        return self.permutation(epoch)[indices.start : indices.stop]
