"""The order of the rows: a function of seed and epoch, so it can be entered at any row and remembers nothing."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass
class GlobalOrder:
    """Which rows each micro-batch of each data rank holds.

    The order of an epoch is one permutation of all rows, the same on every rank. The micro-batches of all ranks that
    begin at one row take the next ``micro * world`` of it, rank ``r`` the ``r``-th ``micro`` of those: what an update
    holds does not depend on how it is cut into ranks and micro-batches.
    """

    size: int
    """Rows in all."""
    micro: int = 1
    """Rows of one micro-batch."""
    rank: int = 0
    world: int = 1
    seed: int = 0
    shuffle: bool = True
    window: int = 1
    """Micro-batches of one update."""
    drop_last: bool = False
    """Leave out the rows that do not fill a last update; else some of its micro-batches are short, or empty."""
    _epoch: int = field(default=-1, repr=False)
    _order: Rows = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    @property
    def whole(self) -> int:
        """Rows of one micro-batch on every rank together."""
        return self.micro * self.world

    def __len__(self) -> int:
        """Micro-batches in an epoch, the same number on every rank."""
        return len(self.starts())

    @property
    def rows(self) -> int:
        """Rows that an epoch goes through."""
        update = self.whole * self.window
        return self.size // update * update if self.drop_last else self.size

    def starts(self, row: int = 0) -> range:
        """Where in the order of an epoch the micro-batches of all ranks begin, from ``row`` on."""
        return range(row, self.rows, self.whole)

    def permutation(self, epoch: int) -> Rows:
        """All rows in the order of ``epoch``; shape (size,)."""
        if not self.shuffle:
            return np.arange(self.size)
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.size)
            self._epoch = epoch
        return self._order

    def places(self, start: int) -> range:
        """Where in the order this rank's rows stand of the micro-batches that begin at ``start``."""
        mine = start + self.rank * self.micro
        return range(mine, mine + self.micro)

    def batch(self, epoch: int, start: int) -> Rows:
        """This rank's rows of the micro-batches that begin at ``start``: ``micro``; at the end fewer, perhaps none."""
        mine = self.places(start)
        return self.permutation(epoch)[mine.start : mine.stop]
