"""The number of targets in a batch's labels, without a synchronisation with the device that holds them."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

IGNORE_INDEX = -100
"""The label of a token that is not a target."""

_counts: MutableMapping[Tensor, tuple[int, tuple[int | None, int | None]]] = WeakTensorKeyDictionary()
"""The numbers of targets of labels that were moved to a device, unshifted and shifted, with the version of the labels
that was counted."""


def count_targets(labels: Tensor, *, shifted: bool) -> int | None:
    """Returns how many of ``labels`` ``[rows, T]`` (int64) are targets, or None where only their device knows.

    With ``shifted`` they are the labels of the next tokens; otherwise the first of each row is not a target.
    """
    if labels.device.type == "cpu" and type(labels) is Tensor:
        return int((labels.numpy()[:, 0 if shifted else 1 :] != IGNORE_INDEX).sum())
    version, known = _counts.get(labels, (-1, (None, None)))
    return known[shifted] if version == labels._version else None


def copy_target_count(batch: Mapping[str, Any], moved: Mapping[str, Any]) -> None:
    """Keeps the number of targets of ``batch``, in main memory, for ``moved``, the same batch on a device.

    Labels ``[rows, T]`` that are changed afterwards, or replaced, are counted again.
    """
    for name in ("shift_labels", "labels"):
        labels = batch.get(name)
        if isinstance(labels, Tensor) and labels.dim() == 2:
            counts = count_targets(labels, shifted=False), count_targets(labels, shifted=True)
            _counts[moved[name]] = moved[name]._version, counts
