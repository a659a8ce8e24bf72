"""Accumulation windows: the micro-batches of one optimizer step on this rank, and the number of labels in all."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import torch

from arctic_training.data.batching.loader import Batch, Loader
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import KEY
from arctic_training.loss.targets import IGNORE_INDEX, copy_target_count
from arctic_training.loss.tokens import NO_TOKENS, TokenCounts, count_tokens
from arctic_training.metrics import Reduce


@dataclass
class AccumulationWindow:
    """Up to ``gradient_accumulation_steps`` micro-batches, after which the engine takes one step.

    A trainer that takes several steps on them, or steps of several roles, runs through them by `iterate`.
    """

    batches: list[Any]
    """Micro-batches of this rank, on the device."""
    targets: int = 0
    """Labels that the loss averages over, on all ranks together."""
    stop: bool = False
    """Whether a rank requested that this window be the last."""
    tokens: TokenCounts = NO_TOKENS
    """Tokens of the documents of all ranks together."""
    index: int = 0
    """Index of the current micro-batch."""
    sums: dict[Callable[[Batch], torch.Tensor], torch.Tensor] = field(default_factory=dict)
    """Statistics of the whole window, on all ranks; see `Updates.window_sum`."""
    skipped_steps: int = 0
    """Optimizer steps of the primary role that a callback has had the engine skip, by a loss that is not finite."""
    step_indices: range = field(init=False)
    """Indices of the micro-batches of the current optimizer step: all of the window, or a part of them."""

    def __post_init__(self) -> None:
        self.step_indices = range(len(self.batches))

    @property
    def size(self) -> int:
        """Number of micro-batches."""
        return len(self.batches)

    @property
    def is_last_micro_batch(self) -> bool:
        """Returns whether the engine steps after the current micro-batch."""
        return self.index == self.step_indices.stop - 1

    def iterate(self, batches: Sequence[Any] | None = None, *, step_size: int = 0) -> Iterator[Any]:
        """Yields the micro-batches, or ``batches``, one made of each, with ``index`` set to the index of each.

        ``step_size`` of them are those of one optimizer step, the last of which may have fewer; 0: all are. So the rows
        of a step do not depend on how the global batch is split, in a short window either. Afterwards ``index`` is as
        it was before. Raises ValueError for another number of batches.
        """
        batches = self.batches if batches is None else batches
        if len(batches) != self.size:
            raise ValueError(f"{len(batches)} batches of a window of {self.size}")
        before, size = (self.index, self.step_indices), step_size or self.size
        try:
            for start in range(0, self.size, size):
                self.step_indices = range(start, min(start + size, self.size))
                for index in self.step_indices:
                    self.index = index
                    yield batches[index]
        finally:
            self.index, self.step_indices = before


def iter_windows(
    batches: Iterable[Any],
    size: int,
    *,
    targets: Callable[[Any], int],
    stop: Callable[[], bool],
    reduce: Reduce,
    ranks: int,
    copies: int = 1,
    device: torch.device,
) -> Iterator[AccumulationWindow]:
    """Yields windows of ``size`` micro-batches; the last of an epoch may be shorter.

    All micro-batches of a window are read before the first is yielded, and their labels and tokens are counted on the
    CPU. One reduction, ``reduce``, of an int64 tensor ``[5]`` over all ``ranks`` gives every rank these numbers and
    whether to stop after the window, so that nothing else in the loop needs a collective. ``copies`` ranks read the
    same rows.
    """
    stream = iter(batches)
    while window := list(islice(stream, size)):
        tokens = [sum(counts) for counts in zip(*map(_count_tokens, window), strict=True)]
        counts = torch.tensor([sum(targets(batch) for batch in window), int(stop()), *tokens], dtype=torch.int64)
        total, stops, *tokens = reduce(counts).tolist()
        share = max(total, 1) / (len(window) * ranks)
        yield AccumulationWindow(
            [set_num_items_in_batch(to_device(batch, device), share) for batch in window],
            total // copies,
            stop=stops > 0,
            tokens=TokenCounts(*(count // copies for count in tokens)),
        )


def windowed_batches(trainer: Any) -> Iterator[Any]:
    """Yields the remaining micro-batches of the epoch, with ``trainer.window`` set to the window that each is part of.

    Windows in ``trainer.skipped_windows`` are passed over. ``trainer`` is a `Trainer`.
    """
    loader, progress = trainer.train_loader, trainer.progress
    batches = loader
    if trainer.config.overfit_first_batch:
        batches = repeat_first_batch(loader, progress.sample_index)
    else:
        loader.seek(progress.epoch, progress.sample_index)
    for window in iter_windows(
        trainer.throughput.timed(batches),
        trainer.config.gradient_accumulation_steps,
        targets=trainer.targets,
        stop=lambda: bool(trainer._stop_request[0]),
        reduce=collectives.all_reduce,
        ranks=process_group.world_size(),
        copies=trainer.config.mesh.model,
        device=trainer.device,
    ):
        if (progress.epoch, progress.sample_index) in trainer.skipped_windows:
            progress.sample_index += window.size * loader.stride
            continue
        trainer.window = window
        for index, batch in enumerate(window.batches):
            window.index = index
            yield batch


def repeat_first_batch(loader: Loader, row: int) -> Iterator[Batch]:
    """Yields the first batch of the data as often as ``loader`` has batches from ``row`` on."""
    loader.seek(0, 0)
    first = next(iter(loader))
    return repeat(first, len(loader) - row // loader.stride) if len(loader) else repeat(first)


def count_loss_terms(batch: Batch) -> int:
    """Returns how many terms a loss of the batch sums.

    They are the rows or pairs of weight 1 where it has ``row_weights``, ``[rows]``, or ``pair_weights``, ``[pairs]``;
    else its labels that are not ignored; else its rows.
    """
    if isinstance(batch, Mapping):
        for name in ("row_weights", "pair_weights"):
            if name in batch:
                return int(batch[name].sum())
        for name in ("shift_labels", "labels"):
            if name in batch:
                return int((batch[name] != IGNORE_INDEX).sum())
        batch = next(iter(batch.values()))
    return len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)


def _count_tokens(batch: Batch) -> TokenCounts:
    shard = batch.get(KEY) if isinstance(batch, Mapping) else None
    return count_tokens(batch) if shard is None else shard.counts  # of a part, not all is known any more


def set_num_items_in_batch(batch: Batch, share: float) -> Batch:
    """Returns the batch with the divisor of its summed losses under transformers' key ``num_items_in_batch``."""
    return {**batch, "num_items_in_batch": share} if isinstance(batch, Mapping) else batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch with its tensors on ``device``; the count of its labels stays known on the CPU."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        moved = {name: to_device(value, device) for name, value in batch.items()}
        copy_target_count(batch, moved)
        return moved
    if isinstance(batch, (list, tuple)):
        moved_values = [to_device(value, device) for value in batch]
        return type(batch)(*moved_values) if hasattr(batch, "_fields") else type(batch)(moved_values)
    return batch
