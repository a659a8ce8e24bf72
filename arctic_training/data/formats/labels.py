"""Reads the labels of rows: names or numbers, as the numbers that a model has for them, or numbers to predict."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX


def read_number(value: object) -> float:
    """Returns the label of a regression, given as a number or, as in a CSV file, as its text, rounded to float32.

    Raises `DataError` for a value that is no finite number of float32, and for -100, which means no label.
    """
    number = np.float32(np.nan)
    if not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError), np.errstate(over="ignore"):
            number = np.float32(float(value))  # type: ignore[arg-type]
    if not np.isfinite(number):
        raise DataError(f"the label {short_repr(value)} is no finite number, as model.task: regression needs it")
    if number == IGNORE_INDEX:
        raise DataError(f"the label {short_repr(value)} is the number that means no label; shift or scale the labels")
    return float(number)


class LabelReader:
    """Returns the number of a label, given by its name or number."""

    def __init__(self, names: Sequence[str], feature: object) -> None:
        """``names`` are those of the model's labels, in their order; ``feature`` is that of the column in `datasets`.

        A data set that names its numbers is read by these names, since its order may be another. True and false are no
        numbers of labels that have names.
        """
        self.names = list(names)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.is_named = self.names != [f"LABEL_{number}" for number in range(len(self.names))]
        self.are_numbers = all(name.lstrip("-").isdecimal() for name in self.names)
        """Then a number is a name, and not a place in their order: that of five stars is 5."""
        feature = feature.feature if hasattr(feature, "feature") else feature  # of a list
        own_names = getattr(feature, "names", None)
        self.own_names: list[str] | None = list(own_names) if own_names and self.is_named else None

    def __call__(self, value: object) -> int:
        """Raises `DataError` for a value that is no label."""
        known = value
        if isinstance(value, int) and self.own_names is not None and 0 <= value < len(self.own_names):
            known = self.own_names[value]
        elif isinstance(value, bool) and self.is_named:
            known = next((name for name in self.names if name.lower() == str(value).lower()), value)
        elif isinstance(value, int) and self.are_numbers:
            known = str(value)
        if isinstance(known, str) and known in self.numbers:
            return self.numbers[known]
        is_truth = isinstance(known, bool) and self.is_named
        if isinstance(known, int) and not is_truth and 0 <= known < len(self.names):
            return int(known)
        shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
        raise DataError(f"the label {short_repr(known)} is none of {shown}; model.labels names the labels")

    def several(self, value: object) -> list[int]:
        """Returns 1 for each label of a row, and 0 for the others, in the order of the names.

        ``value`` is a list of labels, or has 1 or 0 for each of them. Raises `DataError`.
        """
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(f"the labels are {short_repr(value)}; expected a list, since data.multi_label is true")
        is_flags = len(value) == len(self.names) and all(one in (0, 1) for one in value)
        listed = [one for one in value if isinstance(one, int) and not isinstance(one, bool)]
        if is_flags and len({*listed}) == len(value):
            raise DataError(f"the labels are {short_repr(value)}: all labels, or a value for each; give their names")
        if is_flags:
            return [int(one) for one in value]
        if len({*map(str, value)}) < len(value):
            raise DataError(f"the labels are {short_repr(value)}, and one is there twice; expected each once")
        present = {self(one) for one in value}
        return [int(number in present) for number in range(len(self.names))]
