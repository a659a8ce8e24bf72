"""Values of rows that are no tokens: their statistics, and how they are written."""

from collections import Counter
from typing import Any

import numpy as np
import torch

_MAX_VALUES = 20
"""Different values that are counted one by one."""
_MAX_NUMBERS = 12
"""Numbers of a tensor that are written one by one."""


class FactStatistics:
    """Statistics of the values of one name: how often each occurs, and the moments of numbers."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.count = self.not_finite = 0
        self.sum = self.sum_of_squares = 0.0
        self.least, self.largest = float("inf"), float("-inf")

    def add(self, value: object) -> None:
        """Adds the value of a row."""
        numbers = as_numbers(value)
        if numbers is None or numbers.size == 1:
            text = write_value(value)
            if text in self.values or len(self.values) <= _MAX_VALUES:
                self.values[text] += 1
        if numbers is None:
            return
        self.kinds[f"{numbers.dtype} {list(numbers.shape)}"] += 1
        finite = numbers[np.isfinite(numbers)].astype(np.float64)
        self.not_finite += numbers.size - finite.size
        if finite.size:
            self.count += finite.size
            self.sum += float(finite.sum())
            self.sum_of_squares += float(np.square(finite).sum())
            self.least, self.largest = min(self.least, float(finite.min())), max(self.largest, float(finite.max()))

    def summary(self) -> dict[str, Any]:
        """Returns the statistics as values of JSON; few different values are counted, numbers are summed up."""
        summary: dict[str, Any] = {}
        if 0 < len(self.values) <= _MAX_VALUES:
            summary["values"] = dict(self.values.most_common())
        if self.count:
            mean = self.sum / self.count
            deviation = max(self.sum_of_squares / self.count - mean**2, 0.0) ** 0.5
            summary |= {"shapes": dict(self.kinds), "min": self.least, "max": self.largest}
            summary |= {"mean": mean, "standard_deviation": deviation}
        if self.not_finite:
            summary["not_finite"] = self.not_finite
        return summary


def as_numbers(value: object) -> "np.ndarray[Any, Any] | None":
    """Returns a value of numbers as an array; None for one that is text or a flag."""
    if isinstance(value, torch.Tensor):
        tensor = value.float() if value.dtype == torch.bfloat16 else value
        return None if value.dtype == torch.bool and not value.ndim else tensor.numpy()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return np.asarray(value)
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else None


def write_value(value: object) -> str:
    """Returns a value as text; of a long tensor its type, shape and range."""
    numbers = as_numbers(value)
    if numbers is None:
        return str(value.item() if isinstance(value, torch.Tensor) else value)
    if not numbers.ndim:
        return f"{numbers.item():.6g}" if numbers.dtype.kind == "f" else str(numbers.item())
    kind = f"{numbers.dtype} {list(numbers.shape)}"
    if numbers.size <= _MAX_NUMBERS:
        return f"{kind}: " + ", ".join(f"{one:.6g}" for one in numbers.ravel().tolist())
    return f"{kind} from {numbers.min():.4g} to {numbers.max():.4g}, mean {numbers.mean():.4g}"
