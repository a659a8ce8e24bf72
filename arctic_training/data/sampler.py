"""The order of the rows: a function of (seed, epoch, batch), so it can be entered anywhere and remembers nothing."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass
class GlobalOrder:
    """Which rows each micro-batch of each data rank holds.

    The order of an epoch is one permutation of all rows, the same on every rank. Global batch ``b`` is rows
    ``[b * micro * world, (b + 1) * micro * world)`` of it, and rank ``r`` takes the ``r``-th ``micro`` of those: what a
    global batch holds does not depend on how it is cut into ranks and micro-batches.
    """

    size: int
    """Rows in all."""
    micro: int = 1
    """Rows of one micro-batch."""
    rank: int = 0
    world: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    """Leave out the last global batch when it is not full; else some of its micro-batches are short, or empty."""
    _epoch: int = field(default=-1, repr=False)
    _order: Rows = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    @property
    def whole(self) -> int:
        """Rows of one micro-batch on every rank together."""
        return self.micro * self.world

    def __len__(self) -> int:
        """Micro-batches in an epoch, the same number on every rank."""
        return self.size // self.whole if self.drop_last else -(-self.size // self.whole)

    def permutation(self, epoch: int) -> Rows:
        """All rows in the order of ``epoch``; shape (size,)."""
        if not self.shuffle:
            return np.arange(self.size)
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.size)
            self._epoch = epoch
        return self._order

    def batch(self, epoch: int, index: int) -> Rows:
        """The rows of this rank's micro-batch ``index``: ``micro`` of them, fewer in the epoch's last, perhaps none."""
        start = index * self.whole + self.rank * self.micro
        end = min(start + self.micro, (index + 1) * self.whole)
        return self.permutation(epoch)[start:end]
