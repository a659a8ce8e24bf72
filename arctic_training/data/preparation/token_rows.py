"""Reads rows that hold tokens already, with the masks that tokenizers and other trainers put beside them."""

from functools import partial

import numpy as np
import numpy.typing as npt

from arctic_training.data.formats.remarks import unread_columns
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.sources.arrow_rows import Row
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX

_TokenRow = dict[str, npt.NDArray[np.int32]]

_IDS, _LABELS, _PADDING = "input_ids", "labels", "attention_mask"
_LOSS_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
"""Columns that are 0 at tokens without a label; those of TRL and of ``return_assistant_tokens_mask`` come first."""
_POSITIONS = "position_ids"
_UNREAD = ("token_type_ids", "special_tokens_mask")
_EXPECTED = "process is false, so every column must be a list of tokens"


def pretokenized_encoder(vocab_size: int) -> RowEncoder[_TokenRow]:
    """Returns the encoder of rows that hold tokens already, each below ``vocab_size``."""
    return RowEncoder(partial(_read_tokens, vocab_size=vocab_size), _to_columns)


def _to_columns(rows: list[_TokenRow], first: int) -> Columns:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _read_tokens(row: Row, *, vocab_size: int) -> _TokenRow:
    """Returns the columns of tokens and labels; masks are applied to them.

    Raises `DataError` for columns that are no lists of tokens, or of another length than their ``input_ids``.
    """
    read = {name: _integers(name, value) for name, value in row.items() if name not in _UNREAD}
    unread_columns(row, read)
    for name, value in read.items():
        if name.endswith(("labels", "input_ids", "completion_ids")):
            tokens = value[value != IGNORE_INDEX] if name.endswith("labels") else value
            unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]
            if len(unknown):
                raise DataError(f"{name}: {unknown[0]} is no token of the tokenizer, which has {vocab_size}")
        ids = read.get(_prefix(name) + _IDS, value)
        if len(ids) != len(value):
            raise DataError(f"{len(ids)} tokens have {len(value)} {name}; each has one")
    for prefix in [name.removesuffix(_IDS) for name in read if name.endswith(_IDS)]:
        _apply_masks(read, prefix)
    return read


def _integers(name: str, value: object) -> npt.NDArray[np.int32]:
    """Returns a list of integers as an array. Raises `DataError` for anything else."""
    try:
        read = np.array(value, np.int32)
        exact = np.array_equal(read, np.array(value, np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{_EXPECTED}: {error}") from None
    if read.ndim != 1:
        raise DataError(f"{_EXPECTED}; {name} is none")
    if not exact:
        raise DataError(f"{_EXPECTED}; {name} holds fractions")
    return read


def _prefix(name: str) -> str:
    """Returns what precedes the kind of a column: ``rejected_`` of ``rejected_labels``; of other columns the name."""
    kinds = (_LABELS, _PADDING, _POSITIONS, *_LOSS_MASKS)
    return next((name.removesuffix(kind) for kind in kinds if name.endswith(kind)), name)


def _apply_masks(row: _TokenRow, prefix: str) -> None:
    """Removes padding, and the labels that a mask excludes, from the columns with a prefix; the masks are removed.

    Raises `DataError` for masks with other values than 0 and 1, and for positions of several documents.
    """
    ids, labels = prefix + _IDS, prefix + _LABELS
    masks = {kind: row.pop(prefix + kind) for kind in (_PADDING, *_LOSS_MASKS) if prefix + kind in row}
    for kind, mask in masks.items():
        if not np.isin(mask, (0, 1)).all():
            raise DataError(f"{prefix}{kind} holds {mask[~np.isin(mask, (0, 1))][0]}; expected 0 and 1")
    inside = masks.pop(_PADDING, np.ones(len(row[ids]), np.int32)) == 1
    if masks:
        learned = np.logical_and.reduce(list(masks.values()))
        row[labels] = np.where(learned, row.get(labels, row[ids]), IGNORE_INDEX).astype(np.int32)
    positions = row.pop(prefix + _POSITIONS, np.cumsum(inside) - 1)
    if not np.array_equal(positions[inside], np.arange(inside.sum())):
        raise DataError(
            f"{prefix}{_POSITIONS} do not count from 0: a row is one document; make a row of each, and pack_samples "
            "packs them"
        )
    for name in (ids, labels):
        if name in row:
            row[name] = row[name][inside]
