"""Records the allocations of a GPU, for PyTorch's memory viewer."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed import process_group
from arctic_training.errors.types import RecipeError
from arctic_training.logging import logger


class MemoryProfilerConfig(ComponentConfig):
    """Options of the callback `memory_profiler`; ``mem_profiler`` and its keys of ArcticTraining mean them too."""

    mode: Literal["step", "e2e"] = "step"
    """``step``: single steps, of which those are kept that take more memory than all before; ``e2e``: the whole run."""
    output_dir: Path | None = None
    """Where the snapshots are written (default: ``memory`` in the run folder)."""
    max_entries: HumanInt = Field(default=100_000, ge=1)
    """Allocations that are kept; older ones are forgotten."""


class MemoryProfiler(Callback[MemoryProfilerConfig]):
    """Records the allocations of a GPU in snapshots for https://pytorch.org/memory_viz, of every rank.

    On the CPU the callback `profiler` with ``memory: true`` says which operators allocate.
    """

    name = "memory_profiler"
    _peak = 0

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` where there is no GPU."""
        if trainer.device.type not in ("cuda", "meta"):  # meta: `validate` does not know where the run will be
            raise RecipeError(
                f"callbacks.memory_profiler records the memory of a GPU, and this run is on {trainer.device.type}; "
                "use the callback profiler with memory: true"
            )

    def pre_train(self, trainer: TrainerView) -> None:
        """Begins to record."""
        self._begin()

    def post_after_update(self, trainer: TrainerView) -> None:
        """Writes the snapshot of a step that took more memory than those before, and begins anew."""
        if self.config.mode == "e2e":
            return
        if (peak := torch.cuda.max_memory_allocated()) > self._peak:
            self._peak = peak
            self._write(trainer, f"step_{trainer.progress.step}")
        self._begin()

    def post_train(self, trainer: TrainerView) -> None:
        """Writes the snapshot of the whole run, and ends to record."""
        if self.config.mode == "e2e":
            self._write(trainer, "run")
        torch.cuda.memory._record_memory_history(enabled=None)

    def pre_exception(self, trainer: TrainerView) -> None:
        """Writes what led to the error, such as a device that is out of memory."""
        self._write(trainer, "error")
        torch.cuda.memory._record_memory_history(enabled=None)

    def _begin(self) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)
        torch.cuda.memory._record_memory_history(max_entries=self.config.max_entries)
        if self.config.mode == "step":
            torch.cuda.reset_peak_memory_stats()

    def _write(self, trainer: TrainerView, what: str) -> None:
        folder = self.config.output_dir or trainer.run_dir / "memory"
        path = folder / f"{what}_rank_{process_group.rank()}.pickle"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
        except OSError as error:
            logger.error(f"the snapshot {path} could not be written: {error}")
