"""The order of the rows: a function of seed and epoch, so iteration can start at any row without a stored state."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass
class GlobalOrder:
    """Assigns rows to the micro-batches of each data rank.

    The order of an epoch is one permutation of all rows, the same on every rank. The micro-batches of all ranks that
    begin at one row take the next ``micro_batch_size * world_size`` of it, in the order of ranks: the rows of a step do
    not depend on how it is split into ranks and micro-batches.
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
    _epoch: int = field(default=-1, repr=False)
    _order: Rows = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

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
        return self.size // step * step if self.drop_last else self.size

    def batch_starts(self, row: int = 0) -> range:
        """Returns the positions in the order at which the micro-batches of all ranks begin, from ``row`` on."""
        return range(row, self.rows, self.global_micro_batch_size)

    def permutation(self, epoch: int) -> Rows:
        """Returns the order of ``epoch``, int64 ``[size]``."""
        if not self.shuffle:
            return np.arange(self.size)
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.size)
            self._epoch = epoch
        return self._order

    def rank_indices(self, start: int) -> range:
        """Returns this rank's positions in the order, in the micro-batches that begin at ``start``."""
        first = start + self.rank * self.micro_batch_size
        return range(first, first + self.micro_batch_size)

    def batch(self, epoch: int, start: int) -> Rows:
        """Returns this rank's rows of the micro-batches that begin at ``start``, int64; at the end fewer, or none."""
        indices = self.rank_indices(start)
        return self.permutation(epoch)[indices.start : indices.stop]
