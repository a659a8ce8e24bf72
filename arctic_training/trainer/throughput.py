"""Measures what the steps of a run cost: time, time without data, tokens, memory, share of the device's peak."""

import resource
import time
from collections.abc import Iterable, Iterator

import torch

from arctic_training.component import TrainerView
from arctic_training.data.batching.loader import Batch
from arctic_training.display.activity import seconds_aside
from arctic_training.distributed import process_group
from arctic_training.engine.device_peak import peak_flops
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.loss.tokens import TokenCounts
from arctic_training.model.causal_lm import causal_model
from arctic_training.model.flops import ModelFlops, count_flops
from arctic_training.state import Progress

MEASURED = (
    "targets_per_second",
    "tokens_per_second",
    "seconds",
    "data_seconds",
    "peak_memory",
    "peak_host_memory",
    "mfu",
    "save_seconds",
)
"""The metrics that depend on the machine, and differ between runs that are equal."""

_GIB = 2**30


class Throughput:
    """Measures the steps since the last record, without the time of evaluations, saves and samples.

    It reads clocks and counts in main memory only: nothing waits for the device.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._flops: list[tuple[ModelFlops | None, bool]] = []
        self._peak: float | None = None
        self.start()

    def start(self) -> None:
        """Begins to measure at the current step."""
        self._began, self._aside = time.perf_counter(), seconds_aside()
        self._waited, self._operations = 0.0, 0.0
        self._step, self._tokens = self.progress.step, self.progress.num_tokens
        self._targets = self.progress.num_target_tokens

    def watch(self, trainer: TrainerView) -> None:
        """Counts the operations of the models of ``trainer``, whose engines are built."""
        trained, config = trainer.trainable_engines, trainer.config
        self._flops = [(_flops_of(engine), role in trained) for role, engine in trainer.engines.items()]
        peak = 1e12 * config.peak_tflops or peak_flops(trainer.device, getattr(config.model, "dtype", ""))
        self._peak = peak * process_group.world_size() if peak else None

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields ``batches``, and measures how long they are waited for."""
        began = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - began
            yield batch
            began = time.perf_counter()
        self._waited += time.perf_counter() - began

    def add(self, counts: TokenCounts) -> None:
        """Adds the operations of a step on the tokens ``counts``."""
        for model, is_trained in self._flops if counts.tokens else ():
            if model is not None:
                self._operations += model.training(counts) if is_trained else model.inference(counts)

    def read(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, and begins anew.

        ``seconds`` of a step and of them ``data_seconds`` waiting for data, ``targets_per_second`` and
        ``tokens_per_second`` of all ranks, ``num_tokens`` since the run began, ``peak_memory`` of the device and
        ``peak_host_memory`` of the process, in GiB since it began, and ``mfu``, the operations of the models over those
        that the devices could compute in that time. Those that are unknown are left out.
        """
        progress, seconds = self.progress, time.perf_counter() - self._began - (seconds_aside() - self._aside)
        seconds, steps = max(seconds, 1e-9), max(progress.step - self._step, 1)
        values = {"targets_per_second": (progress.num_target_tokens - self._targets) / seconds}
        if progress.num_tokens:
            values["tokens_per_second"] = (progress.num_tokens - self._tokens) / seconds
            values["num_tokens"] = progress.num_tokens
        values |= {"seconds": seconds / steps, "data_seconds": self._waited / steps}
        if self._peak and self._operations and all(model is not None for model, _ in self._flops):
            values["mfu"] = self._operations / seconds / self._peak
        if torch.cuda.is_available():
            values["peak_memory"] = torch.cuda.max_memory_allocated() / _GIB
        values["peak_host_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from KiB
        self.start()
        return values


def _flops_of(engine: Engine) -> ModelFlops | None:
    try:
        return count_flops(causal_model(engine))
    except ModelError:  # no model of transformers
        return None
