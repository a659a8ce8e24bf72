"""Which samples share a row: best fit, the longest first, over the whole data set."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class Packs(Sequence[Indices]):
    """Groups of sample indices, kept as two arrays however many they are."""

    def __init__(self, members: Indices, ends: Indices) -> None:
        """Pack ``i`` is ``members[ends[i - 1]:ends[i]]``."""
        self.members, self.ends = members, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a slice makes no sense here
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        start = self.ends[index - 1] if index else 0
        return self.members[start : self.ends[index]]

    def __iter__(self) -> Iterator[Indices]:
        return (self[index] for index in range(len(self)))


def best_fit(lengths: npt.ArrayLike, capacity: int) -> Packs:
    """Best-fit decreasing (Johnson 1973): each sample, the longest first, goes where it leaves the least room.

    Samples of one length are placed together, and a bit set of the rooms there are finds the tightest, so that the time
    is linear in samples with a small factor, and so is the memory. The same lengths always give the same packs.
    Raises ValueError when a sample is empty or longer than ``capacity``.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and not 1 <= int(sizes.min()) <= int(sizes.max()) <= capacity:
        raise ValueError(f"samples of {sizes.min()} to {sizes.max()} tokens do not fit into packs of {capacity}")
    # a pack that takes everything has all the room that matters, and the set of rooms is as long as the largest
    capacity = min(capacity, int(sizes.sum()))
    order = np.argsort(-sizes, kind="stable")
    packs = np.empty(len(sizes), np.int64)
    """The pack of each sample in ``order``."""
    made = _place(*_runs(sizes[order]), capacity, packs)
    by_pack = np.argsort(packs, kind="stable")
    ends = np.cumsum(np.bincount(packs, minlength=made)) if made else np.empty(0, np.int64)
    return Packs(order[by_pack], ends)


def _runs(descending: Indices) -> tuple[list[int], list[int]]:
    """The lengths there are, and how often each is there."""
    starts = np.flatnonzero(np.diff(descending, prepend=-1))
    return descending[starts].tolist(), np.diff(starts, append=len(descending)).tolist()


def _place(lengths: list[int], counts: list[int], capacity: int, packs: Indices) -> int:
    """Write the pack of each sample to ``packs``, and return how many packs there are."""
    waiting: dict[int, list[int]] = {}
    """The packs that have exactly that much room left."""
    rooms = 0
    """Bit ``r`` is set when some pack has room ``r`` left."""
    made = at = 0
    for length, count in zip(lengths, counts, strict=True):
        while count:
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            # a pack takes as many as it holds: until it is full, no other fits them tighter
            each = room // length
            wanted = -(-count // each)
            if fitting:
                taken = waiting[room][-wanted:]
                del waiting[room][-wanted:]
                if not waiting[room]:
                    rooms ^= 1 << room
            else:
                taken = list(range(made, made + wanted))
                made += wanted
            done = min(count, each * len(taken))
            packs[at : at + done] = np.repeat(taken, each)[:done]
            last = done - each * (len(taken) - 1)
            for left, those in ((room - each * length, taken[:-1]), (room - last * length, taken[-1:])):
                if those:
                    waiting.setdefault(left, []).extend(those)
                    rooms |= 1 << left
            at, count = at + done, count - done
    return made


def repeated(packs: Packs, lengths: npt.ArrayLike, capacity: int) -> Packs:
    """The same packs, each filled up with its own samples again, in turn, as long as one fits."""
    sizes = np.asarray(lengths, dtype=np.int64)
    members: list[int] = []
    ends: list[int] = []
    for pack in packs:
        room = capacity - int(sizes[pack].sum())
        filled = pack.tolist()
        while fitting := [sample for sample in pack.tolist() if sizes[sample] <= room]:
            for sample in fitting:
                if sizes[sample] <= room:
                    filled.append(sample)
                    room -= int(sizes[sample])
        members += filled
        ends.append(len(members))
    return Packs(np.array(members, np.int64), np.array(ends, np.int64))
