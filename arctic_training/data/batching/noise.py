"""Random numbers that belong to rows: a function of (seed, row, stream), whoever draws them, when and with what else.

So what is drawn for a global batch depends neither on how it is cut into micro-batches and ranks nor on where a run
was interrupted, and it is the same on every device. The generator is SplitMix64 (Steele, Lea and Flood 2014), keyed
twice.
"""

import math

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15


def uniform(rows: Tensor, size: int, *, seed: int = 0, stream: int = 0) -> Tensor:
    """Doubles in (0, 1), ``[n, size]``, on the device of ``rows``: int64 ``[n]``, a number for each row.

    Different streams of one seed are as independent as different seeds are.
    """
    key = _mix(_mix(rows + _signed(_GAMMA * (2 * seed + 1))) + _signed(_GAMMA * (stream + 1)))
    counters = torch.arange(1, size + 1, device=rows.device) * _signed(_GAMMA)
    return ((_shifted(_mix(key[:, None] + counters), 11)).double() + 0.5) * 2.0**-53


def normal(rows: Tensor, size: int, *, seed: int = 0, stream: int = 0) -> Tensor:
    """Standard normal numbers in fp32, ``[n, size]``, by the method of Box and Muller; see `uniform`."""
    radius, angle = uniform(rows, 2 * size, seed=seed, stream=stream).chunk(2, dim=1)
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in: torch has no unsigned shift."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return (word + 2**63) % 2**64 - 2**63
