"""Prints metrics as lines on the console."""

from collections.abc import Mapping
from pathlib import Path

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.tracker.tracker import Tracker


class ConsoleConfig(ComponentConfig):
    """Options of the tracker `console`."""

    every: int = 1
    """Steps between lines of the training loss; other values are always printed."""


class ConsoleTracker(Tracker[ConsoleConfig]):
    """Prints the metrics of the run."""

    name = "console"
    config_type = ConsoleConfig

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        print(f"run folder: {run_dir}", flush=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if "loss" in values and (not self.config.every or step % self.config.every):
            return
        metrics = " ".join(f"{name} {_short(name, value)}" for name, value in values.items() if name != "epoch")
        print(f"step {step} | {metrics}", flush=True)


def _short(name: str, value: float) -> str:
    if name.endswith("_per_second"):
        return f"{value:,.0f}"
    return f"{value:.3g}" if name in ("lr", "seconds", "grad_norm") else f"{value:.4f}"
