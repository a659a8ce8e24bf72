"""Columns of the samples that a frozen model computes once, before training, and that are kept in the data cache."""

import contextlib
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arctic_training.data.batching.loader import Column, IndexedLoader
from arctic_training.data.batching.target_column import TargetColumn, entries_of, target_offsets
from arctic_training.data.preparation import cache
from arctic_training.data.preparation.code_fingerprint import code_fingerprint
from arctic_training.data.preparation.samples import Indices, SampleList
from arctic_training.display.activity import activity
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.engine.engine import Engine
from arctic_training.engine.weights_fingerprint import weights_fingerprint
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.trainer.window import to_device

if TYPE_CHECKING:
    import pyarrow as pa

Values = Mapping[str, npt.NDArray[Any]]
"""The entries of all samples, by column: ``[samples]``, or ``[labels of all samples, ...]``."""
Compute = Callable[[Engine, Any], Mapping[str, Tensor]]
"""Returns the entries of a batch by column, on its device: ``[samples of the batch]``, or for columns of labels
``[labels of the batch, ...]``. int32 is kept, and any other dtype becomes float32."""


def add_precomputed_columns(
    trainer: Any, engine: Engine, compute: Compute, *, settings: Mapping[str, Any], of_labels: bool = False
) -> None:
    """Adds what ``compute`` returns for the frozen ``engine`` to the samples of training and of every evaluation set.

    ``of_labels`` says that it is something for each label, not each sample. It is read from the data cache when that
    holds the values for these weights, samples, ``settings`` and code; else it is computed, once for each sample, by
    all ranks together. Raises `ModelError` for a value that is not finite.
    """
    store = cache.Cache((getattr(trainer.config.data, "cache_dir", None) or cache.default_folder()).expanduser())
    # not the layers of DeepSpeed that processes divide a model by: the values do not depend on them
    parts = [
        one for one in {type(one) for one in engine.module.modules()} if not one.__module__.startswith("deepspeed.")
    ]
    weights, shared = weights_fingerprint(engine.module), cache.is_shared(store.folder)
    for name, loader in {"train": trainer.train_loader, **trainer.eval_loaders}.items():
        key = ""
        if process_group.is_main():
            key = cache.key(
                {
                    "weights": weights,
                    "samples": samples_fingerprint(loader.dataset),
                    "settings": settings,
                    "code": code_fingerprint([type(trainer), *parts]),
                    "libraries": cache.library_versions() | _library_versions(parts),
                }
            )
        key = collectives.broadcast_object(key)
        offsets = target_offsets(loader.dataset) if of_labels else np.arange(len(loader.dataset) + 1)
        known = collectives.broadcast_object(store.has(key))
        start = time.monotonic()
        if not known:
            values = compute_columns(trainer, engine, compute, offsets, loader)
            with collectives.main_process_first() as first:
                if first:
                    store.write(key, _table(values), [], {})
        # every rank maps the file into its memory where it can see it
        read = _read(store, key) if shared or process_group.is_main() else {}
        values = read if shared else collectives.broadcast_object(read)
        what = f"{', '.join(values)} of {len(loader.dataset)} samples"
        seconds = time.monotonic() - start
        logger.info(f"{name}: {f'read {what} from the data cache' if known else f'computed {what} in {seconds:.0f} s'}")
        columns: dict[str, Column] = dict(values)
        if of_labels:
            columns = {column: TargetColumn(entries, offsets) for column, entries in values.items()}
        loader.add_columns(columns)


def _library_versions(classes: Iterable[type]) -> dict[str, str]:
    """Returns the versions of torch and of the libraries that ``classes`` are of."""
    versions = {}
    for name in {"torch", *(one.__module__.partition(".")[0] for one in classes)}:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # code of the user's
            versions[name] = importlib.metadata.version(name)
    return versions


def _table(values: Values) -> "pa.Table":
    import pyarrow as pa

    def column(entries: npt.NDArray[Any]) -> pa.Array:
        flat = pa.array(entries.ravel())
        return flat if entries.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, entries.shape[1])

    return pa.table({name: column(entries) for name, entries in values.items()})


def _read(store: cache.Cache, key: str) -> Values:
    import pyarrow as pa

    table, _, _ = store.read(key)
    values = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        of_lists = pa.types.is_fixed_size_list(column.type)
        flat = (column.flatten() if of_lists else column).to_numpy(zero_copy_only=False)
        values[name] = flat.reshape(len(column), column.type.list_size) if of_lists else flat
    return values


@torch.no_grad()
def compute_columns(trainer: Any, engine: Engine, compute: Compute, offsets: Indices, loader: IndexedLoader) -> Values:
    """Returns what ``compute`` returns for every sample of ``loader``, on all ranks.

    The entries of sample ``n`` are those from ``offsets[n]`` to ``offsets[n + 1]``. Raises `ModelError` for one that is
    not finite.
    """
    ordered = loader.in_order()
    counts = process_group.rank() % trainer.config.ranks_per_row == 0
    columns: dict[str, Tensor] = {}
    with activity("reading samples", len(ordered)) as reading:
        for start, batch in zip(ordered.order.batch_starts(), ordered, strict=True):
            places = torch.from_numpy(entries_of(offsets, ordered.samples(0, start)))
            for name, values in compute(engine, to_device(batch, trainer.device)).items():
                dtype = torch.int32 if values.dtype == torch.int32 else torch.float32
                size = (int(offsets[-1]), *values.shape[1:])
                column = columns.setdefault(name, torch.zeros(size, dtype=dtype))
                if counts:  # the others have the same samples
                    column[places] = values[: len(places)].to("cpu", dtype)
            reading.done += 1
            record_heartbeat("precompute")
    for name, column in columns.items():
        collectives.all_reduce(column)  # each sample is of one rank, and 0 on the others
        finite = column.isfinite().flatten(1).all(1) if column.ndim > 1 else column.isfinite()
        if len(odd := torch.nonzero(~finite)):
            place = int(odd[0])
            sample = int(np.searchsorted(offsets, place, side="right")) - 1
            raise ModelError(f"{name}: sample {sample} has {column[place].tolist()}; the model's output is not finite")
    return {name: column.numpy() for name, column in columns.items()}


def samples_fingerprint(samples: SampleList) -> str:
    """Returns a digest of samples: of mappings of arrays and numbers, by index."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(samples)):
        for name, value in samples[index].items():
            array = np.ascontiguousarray(value)
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
