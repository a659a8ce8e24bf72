"""Fingerprints of the content of a loader: of its samples, and of the rows that they are packed into."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.batching.chunking import ConcatenatedRows, SampleSlices, TruncatedPairs
from arctic_training.data.batching.loader import Loader
from arctic_training.data.batching.mismatched import MismatchedCompletions
from arctic_training.data.batching.packing import Packs
from arctic_training.data.batching.stream import StreamLoader
from arctic_training.data.preparation import cache
from arctic_training.data.preparation.samples import ListColumn, Samples, ValueColumn

_MAX_BYTES = 256 * 2**20
"""Bytes of a column that are hashed; of a larger one in blocks spread over it."""
_BLOCK = 64 * 2**10


def of_data(loader: Loader) -> dict[str, str]:
    """Returns the fingerprints of the samples and, where several are packed into a row, of the rows."""
    if isinstance(loader, StreamLoader):
        return {"data.samples": _digest([repr(_source(one)).encode() for one in loader.factory.config.sources])}
    samples = getattr(loader, "dataset", None)
    fingerprints = {"data.samples": _summary(samples, "samples")} if isinstance(samples, Sized) else {}
    if (groups := getattr(loader, "groups", None)) is not None:
        fingerprints["data.rows"] = _summary(groups, "rows")
    return fingerprints


def of_tokenizer(tokenizer: object) -> str:
    """Returns the fingerprint of how a tokenizer encodes a text or a chat."""
    if hasattr(tokenizer, "special_tokens_map"):
        return cache.tokenizer_fingerprint(tokenizer)[:12]
    return type(tokenizer).__qualname__


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the fingerprint of tensors of any shape and dtype, by name: ``[...]`` each."""
    return _digest(_content(tensors))


def _summary(samples: Sized, what: str) -> str:
    """Returns size and digest, such as ``10 samples (1f...)``."""
    size = next(map(len, samples.values()), 0) if isinstance(samples, Mapping) else len(samples)
    return f"{size} {what} ({_digest(_content(samples))})"


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _content(samples: object) -> Iterator[bytes | memoryview]:
    """Yields bytes that are equal for equal samples; none for an unknown type, which may be random."""
    if isinstance(samples, Samples):
        for name, column in sorted(samples._columns.items()):
            yield name.encode()
            yield from _column(column)
        if samples.indices is not None:
            yield from _arrays([samples.indices])
    elif isinstance(samples, SampleSlices):
        yield from _arrays([samples.sample, samples.start, samples.end])
        yield from _content(samples.samples)
    elif isinstance(samples, TruncatedPairs):
        yield from _arrays([samples.heads, samples.tails, samples.completions])
        yield from _content(samples.samples)
    elif isinstance(samples, ConcatenatedRows):
        yield from _content(samples.rows)
        yield from _content(samples.slices)
    elif isinstance(samples, MismatchedCompletions):
        yield from _content(samples.samples)
    elif isinstance(samples, Packs):
        yield from _arrays([samples.members, samples.ends])
    elif isinstance(samples, Mapping):
        for name, value in sorted(samples.items()):
            yield str(name).encode()
            yield from _content(value)
    elif isinstance(samples, torch.Tensor):
        yield str(samples.dtype).encode()
        yield from _arrays([samples.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()])
    elif isinstance(samples, np.ndarray):
        yield from _arrays([samples])
    elif isinstance(samples, TensorDataset):
        for tensor in samples.tensors:
            yield from _content(tensor)
    elif isinstance(samples, list) and samples and isinstance(samples[0], np.ndarray):
        yield from _arrays([np.cumsum([len(array) for array in samples]), *samples])


def _column(column: ListColumn | ValueColumn) -> Iterator[bytes | memoryview]:
    """Yields the bytes of a column of the cache's table, whatever its chunks are."""
    if isinstance(column, ListColumn):
        chunks = zip(column.values, column.offsets, strict=True)
        yield from _arrays([values[offsets[0] : offsets[-1]] for values, offsets in chunks])
        yield from _arrays([column.lengths()])
    else:
        for chunk in column.column.chunks:
            for start in range(0, len(chunk), 1000):
                yield "".join(f"{value!r}," for value in chunk[start : start + 1000].to_pylist()).encode()


def _arrays(arrays: Sequence[npt.NDArray[Any]]) -> Iterator[memoryview]:
    """Yields the bytes of concatenated arrays; blocks of them when they are large."""
    kept = [np.ascontiguousarray(array) for array in arrays if array.size]
    views = [array.data.cast("B") for array in kept]
    ends = np.cumsum([len(view) for view in views])
    total = int(ends[-1]) if views else 0
    if total <= _MAX_BYTES:
        yield from views
        return
    for first in np.linspace(0, total - _BLOCK, _MAX_BYTES // _BLOCK).astype(np.int64).tolist():
        n, left = int(np.searchsorted(ends, first, "right")), _BLOCK
        at = first - int(ends[n]) + len(views[n])
        while left:  # continues in the next array: chunks do not matter
            part = views[n][at : at + left]
            yield part
            n, at, left = n + 1, 0, left - len(part)


def _source(config: DataSourceConfig) -> list[object]:
    """Returns the section and file of a stream, whose content is not known beforehand."""
    path = Path(str(getattr(config, "name_or_path", "")))
    size = path.stat().st_size if path.is_file() else None
    name = str(path) if size is None else path.name  # a moved file is the same
    return [config.model_dump(mode="json", exclude={"name_or_path"}), name, size]
