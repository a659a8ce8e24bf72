"""Columns of the samples that a frozen model computes once, before training, and that are kept in the data cache."""

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from arctic_training.data.batching.loader import IndexedLoader
from arctic_training.data.preparation import cache
from arctic_training.data.preparation.samples import SampleList
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.engine.engine import Engine
from arctic_training.engine.zero import gathered
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.trainer.window import to_device

Columns = Mapping[str, npt.NDArray[np.float32]]
"""A number of each sample, ``[samples]``, by column."""
Compute = Callable[[Engine, Any], Mapping[str, Tensor]]
"""Returns the columns of a batch, on its device, each ``[samples of the batch]``."""


def add_precomputed_columns(trainer: Any, engine: Engine, compute: Compute, *, settings: Mapping[str, Any]) -> None:
    """Adds what ``compute`` returns for the frozen ``engine`` to the samples of training and of every evaluation set.

    It is read from the data cache when it holds the values for these weights, samples, ``settings`` and code; else it
    is computed, once for each sample, by all ranks together. Raises `ModelError` for a value that is not finite.
    """
    store = cache.Cache((getattr(trainer.config.data, "cache_dir", None) or cache.default_folder()).expanduser())
    weights = weights_fingerprint(engine.module)
    for name, loader in {"train": trainer.train_loader, **trainer.eval_loaders}.items():
        key = ""
        if process_group.is_main():
            key = cache.key(
                {
                    "weights": weights,
                    "samples": samples_fingerprint(loader.dataset),
                    "settings": settings,
                    "code": cache.code_fingerprint([type(trainer)]),
                    "libraries": cache.library_versions() | {"torch": importlib.metadata.version("torch")},
                }
            )
        loader.add_columns(_read_or_compute(trainer, engine, compute, loader, name, store, key))


def _read_or_compute(
    trainer: Any, engine: Engine, compute: Compute, loader: IndexedLoader, name: str, store: cache.Cache, key: str
) -> Columns:
    import pyarrow as pa

    columns: Columns | None = None
    if process_group.is_main() and store.has(key):
        table, _, _ = store.read(key)
        columns = {column: table.column(column).to_numpy() for column in table.column_names}
    columns = collectives.broadcast_object(columns)
    if columns is not None:
        logger.info(f"{name}: read {', '.join(columns)} of {len(loader.dataset)} samples from the data cache")
        return columns
    start = time.monotonic()
    columns = compute_columns(trainer, engine, compute, loader)
    with collectives.main_process_first() as first:
        if first:
            store.write(key, pa.table(dict(columns)), [], {})
    seconds = time.monotonic() - start
    logger.info(f"{name}: computed {', '.join(columns)} of {len(loader.dataset)} samples in {seconds:.0f} s")
    return columns


@torch.no_grad()
def compute_columns(trainer: Any, engine: Engine, compute: Compute, loader: IndexedLoader) -> Columns:
    """Returns what ``compute`` returns for every sample of ``loader``, on all ranks. Raises `ModelError`."""
    ordered = loader.in_order()
    size, counts = len(loader.dataset), process_group.rank() % int(trainer.config.sequence_parallel_size) == 0
    columns: dict[str, Tensor] = {}
    for start, batch in zip(ordered.order.batch_starts(), ordered, strict=True):
        rows = ordered.samples(0, start)
        for name, values in compute(engine, to_device(batch, trainer.device)).items():
            column = columns.setdefault(name, torch.zeros(size, dtype=torch.float32))
            if counts:  # ranks that share sequences have the same samples
                column[rows] = values[: len(rows)].float().cpu()
        record_heartbeat("precompute")
    for name, column in columns.items():
        collectives.all_reduce(column)  # each sample is of one rank, and 0 on the others
        if len(odd := torch.nonzero(~column.isfinite())):
            raise ModelError(
                f"{name}: sample {int(odd[0])} has {float(column[odd[0]])}; the model's output is not finite"
            )
    return {name: column.numpy() for name, column in columns.items()}


def weights_fingerprint(module: nn.Module) -> str:
    """Returns a digest of the module's parameters and buffers, the same at every ZeRO stage; all ranks call it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        with gathered([parameter]):
            if process_group.is_main():
                _add(digest, name, parameter)
    for name, buffer in module.named_buffers():
        _add(digest, name, buffer)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def samples_fingerprint(samples: SampleList) -> str:
    """Returns a digest of samples: of mappings of arrays and numbers, by index."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(samples)):
        for name, value in samples[index].items():
            array = np.ascontiguousarray(value)
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
