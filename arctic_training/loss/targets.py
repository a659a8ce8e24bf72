"""How many labels are targets, known without a wait for the device that holds them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

IGNORE_INDEX = -100
"""The label of a token that is no target."""

_counts: Any = WeakTensorKeyDictionary()
"""The number of targets among labels that were moved to a device, with the version of the labels it was counted in."""


def count(labels: Tensor, *, shifted: bool) -> int | None:
    """Returns how many of ``labels`` [rows, T] are targets, or None where only their device knows.

    ``shifted`` are those of the next tokens; of others the first of each row is no target.
    """
    if labels.device.type == "cpu" and type(labels) is Tensor:
        return int((labels.numpy()[:, 0 if shifted else 1 :] != IGNORE_INDEX).sum())
    version, known = _counts.get(labels, (-1, None))
    return int(known) if known is not None and version == labels._version else None


def carry_count(batch: Mapping[str, Any], moved: Mapping[str, Any]) -> None:
    """Remembers of ``moved``, a batch on its device, the number of targets of ``batch``, the same in main memory.

    Labels that are changed afterwards, or replaced by others, are counted anew.
    """
    for name in ("shift_labels", "labels"):
        labels = batch.get(name)
        if isinstance(labels, Tensor) and labels.dim() == 2:
            _counts[moved[name]] = moved[name]._version, count(labels, shifted=name == "shift_labels")
