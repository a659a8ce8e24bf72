"""Packs samples into rows: best-fit decreasing, over the full data set."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arctic_training.data.preparation.samples import Indices


class Packs(Sequence[Indices]):
    """Groups of sample indices, stored in two arrays."""

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


def best_fit(lengths: npt.ArrayLike, capacity: int) -> Packs:
    """Packs by best-fit decreasing (Johnson 1973): each sample, longest first, goes where it leaves the least room.

    Returns packs of at most ``capacity`` tokens. Samples of one length are placed together, and a bit set of the free
    room in packs finds the tightest, so that time and memory are linear in the samples, with a small factor. The same
    lengths always give the same packs. Raises ValueError when a sample is empty or longer than ``capacity``.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and not 1 <= int(sizes.min()) <= int(sizes.max()) <= capacity:
        raise ValueError(f"samples of {sizes.min()} to {sizes.max()} tokens do not fit into packs of {capacity}")
    # a pack never needs more room than all samples take, and the bit set is as long as the largest room
    capacity = min(capacity, int(sizes.sum()))
    order = np.argsort(-sizes, kind="stable")
    packs = np.empty(len(sizes), np.int64)
    """The pack of each sample in ``order``."""
    distinct, counts = np.unique(sizes, return_counts=True)
    count = _place(distinct[::-1].tolist(), counts[::-1].tolist(), capacity, packs)
    by_pack = np.argsort(packs, kind="stable")
    ends = np.cumsum(np.bincount(packs, minlength=count)) if count else np.empty(0, np.int64)
    return Packs(order[by_pack], ends)


def _place(lengths: list[int], counts: list[int], capacity: int, packs: Indices) -> int:
    """Writes the pack of each sample to ``packs``, and returns the number of packs."""
    open_packs: dict[int, list[int]] = {}
    """The packs by the room that they have left."""
    rooms = 0
    """Bit ``r`` is set when some pack has room ``r`` left."""
    pack_count = at = 0
    for length, count in zip(lengths, counts, strict=True):
        while count:
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            # a pack takes as many as it holds: until it is full, no other fits them tighter
            each = room // length
            needed = -(-count // each)
            if fitting:
                taken = open_packs[room][-needed:]
                del open_packs[room][-needed:]
                if not open_packs[room]:
                    rooms ^= 1 << room
            else:
                taken = list(range(pack_count, pack_count + needed))
                pack_count += needed
            done = min(count, each * len(taken))
            packs[at : at + done] = np.repeat(taken, each)[:done]
            last = done - each * (len(taken) - 1)
            for left, those in ((room - each * length, taken[:-1]), (room - last * length, taken[-1:])):
                if those:
                    open_packs.setdefault(left, []).extend(those)
                    rooms |= 1 << left
            at, count = at + done, count - done
    return pack_count


def repeated(packs: Packs, lengths: npt.ArrayLike, capacity: int) -> Packs:
    """Returns the packs, each filled with repetitions of its own samples, in turn, as long as one fits."""
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
