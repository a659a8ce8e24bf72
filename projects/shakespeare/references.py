"""What other models of text take for the plays that are held out: `python projects/shakespeare/references.py`."""

import lzma

import numpy as np
import numpy.typing as npt
from train import plays

Text = npt.NDArray[np.int64]


def xz_bits(trained: bytes, held: bytes) -> float:
    """Returns what xz, at its strongest, needs for a byte of ``held`` behind ``trained``."""

    def size(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(trained + held) - size(trained)) / len(held)


def ngram_bits(trained: Text, held: Text, order: int, vocabulary: int = 256) -> float:
    """Returns the mean bits of a symbol of ``held``, from the ``order``-th on, under an interpolated ``order``-gram of
    ``trained``, both int64 ``[n]``.

    The smoothing is that of Kneser and Ney (1995), interpolated (Chen and Goodman 1999, section 2.7): counts are
    discounted by n1 / (n1 + 2 n2), and below the highest order they count the different symbols before.
    """
    probabilities = np.full(len(held) - order + 1, 1 / vocabulary)
    for size in range(1, order + 1):
        windows, counts = np.unique(_windows(trained, size, vocabulary), return_counts=True)
        if size < order:
            longer = np.unique(_windows(trained, size + 1, vocabulary)) % vocabulary**size
            windows, counts = np.unique(longer, return_counts=True)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once and twice else 0.5
        contexts, first = np.unique(windows // vocabulary, return_index=True)
        totals, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(windows)))
        keys = _windows(held, size, vocabulary)[order - size :]
        count, (total, kind) = _look_up(windows, keys, counts)[0], _look_up(contexts, keys // vocabulary, totals, kinds)
        known = np.maximum(total, 1)
        mixed = (np.maximum(count - discount, 0) + discount * kind * probabilities) / known
        probabilities = np.where(total > 0, mixed, probabilities)
    return float(-np.log2(probabilities).mean())


def _windows(text: Text, size: int, vocabulary: int) -> Text:
    """Returns every ``size`` symbols in a row as one number, int64 ``[n - size + 1]``."""
    number = np.zeros(len(text) - size + 1, np.int64)
    for offset in range(size):
        number = number * vocabulary + text[offset : len(text) - size + 1 + offset]
    return number


def _look_up(keys: Text, queries: Text, *columns: Text) -> list[Text]:
    """Returns the entries of ``columns`` at the sorted ``keys`` that are ``queries``, or 0 without one."""
    place = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return [np.where(keys[place] == queries, column[place], 0) for column in columns]


if __name__ == "__main__":
    trained, held = ("".join(plays(split).values()).encode() for split in ("train", "eval"))
    print(f"{len(trained)} characters to train on, {len(held)} held out")
    print(f"xz -9e, behind the text trained on: {xz_bits(trained, held):.3f} bits per character")
    texts = [np.frombuffer(data, np.uint8).astype(np.int64) for data in (trained, held)]
    for order in range(1, 8):
        print(f"interpolated {order}-gram: {ngram_bits(*texts, order):.3f} bits per character")
