"""Random numbers of rows: a function of (seed, row, stream), on whichever rank and device and in whichever batch.

The numbers of a global batch depend neither on how it is split into micro-batches and ranks nor on where a run was
interrupted. The generator is SplitMix64 (Steele, Lea and Flood 2014), keyed
twice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15


def uniform(rows: Tensor, size: int | Sequence[int], *, seed: int = 0, stream: int = 0) -> Tensor:
    """Returns doubles in (0, 1) on the device of ``rows``, int64 ``[n]``, the number of each row: ``[n, size]``, or
    ``[n, *size]`` where ``size`` is a shape.

    Different streams of one seed are as independent as different seeds are.
    """
    shape = [size] if isinstance(size, int) else size
    key = _mix(_mix(rows + _signed(_GAMMA * (2 * seed + 1))) + _signed(_GAMMA * (stream + 1)))
    counters = torch.arange(1, math.prod(shape) + 1, device=rows.device) * _signed(_GAMMA)
    numbers = ((_shifted(_mix(key[:, None] + counters), 11)).double() + 0.5) * 2.0**-53
    return numbers.reshape(len(rows), *shape)


def normal(rows: Tensor, size: int | Sequence[int], *, seed: int = 0, stream: int = 0) -> Tensor:
    """Returns standard normal numbers, fp32 ``[n, size]`` or ``[n, *size]``, by the method of Box and Muller; see
    `uniform`."""
    shape = [size] if isinstance(size, int) else size
    radius, angle = uniform(rows, [2, *shape], seed=seed, stream=stream).unbind(1)
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifts to the right and fills with zeros: torch has no unsigned shift."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """Returns the int64 with the same 64 bits."""
    return (word + 2**63) % 2**64 - 2**63
