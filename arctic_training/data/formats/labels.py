"""Reads the labels of rows: names or numbers, as the numbers that a model has for them."""

from collections.abc import Sequence

from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError


class LabelReader:
    """Returns the number of a label, given by its name or number."""

    def __init__(self, names: Sequence[str], feature: object) -> None:
        """``names`` are those of the model's labels, in their order; ``feature`` is that of the column in `datasets`.

        A data set that names its numbers is read by these names, since its order may be another.
        """
        self.names = list(names)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        is_named = self.names != [f"LABEL_{number}" for number in range(len(self.names))]
        feature = feature.feature if hasattr(feature, "feature") else feature  # of a list
        own_names = getattr(feature, "names", None)
        self.own_names: list[str] | None = list(own_names) if own_names and is_named else None

    def __call__(self, value: object) -> int:
        """Raises `DataError` for a value that is no label."""
        known = value
        if isinstance(value, int) and self.own_names is not None and 0 <= value < len(self.own_names):
            known = self.own_names[value]
        if isinstance(known, str) and known in self.numbers:
            return self.numbers[known]
        if isinstance(known, int) and 0 <= known < len(self.names):
            return int(known)
        shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
        raise DataError(f"the label {short_repr(known)} is none of {shown}; model.labels names the labels")

    def several(self, value: object) -> list[int]:
        """Returns 1 for each label that is in the list ``value``, and 0 for the others, in the order of the names.

        Raises `DataError`.
        """
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(f"the labels are {short_repr(value)}; expected a list, since data.multi_label is true")
        present = {self(one) for one in value}
        return [int(number in present) for number in range(len(self.names))]
