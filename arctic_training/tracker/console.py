"""Shows metrics to a person: as lines, or beside the bar of a terminal."""

from collections.abc import Mapping
from pathlib import Path

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.display import watch
from arctic_training.display.activity import Activity, current
from arctic_training.display.format import clock, position
from arctic_training.tracker.tracker import Tracker

_UNPRINTED = ("epoch", "num_tokens", "seconds", "data_seconds", "peak_host_memory")
"""What is in ``metrics.jsonl`` alone."""
_SHORT = {"tokens_per_second": "tokens/s", "targets_per_second": "targets/s", "peak_memory": "GiB"}
_THREE_DIGITS = ("lr", "grad_norm", "mfu", "peak_memory", "epoch")


class ConsoleConfig(ComponentConfig):
    """Options of the tracker `console`."""

    every: int = 1
    """Steps between lines of the training loss; other values are always printed."""


class ConsoleTracker(Tracker[ConsoleConfig]):
    """Prints the metrics of the run; where there is a bar, those of steps are shown beside it instead."""

    name = "console"

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        print(f"run folder: {run_dir}", flush=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        run = next((one for one in current() if one.name == watch.RUN), None)
        is_step = "loss" in values
        if is_step:
            shown = _printed(values) | ({"epoch": _short("epoch", values["epoch"])} if "epoch" in values else {})
            watch.show_numbers(dict(sorted(shown.items(), key=lambda item: item[0] != "epoch")))
        if is_step and (watch.has_bar() or not self.config.every or step % self.config.every):
            return
        print(_line(_printed(values), step, run, with_time=is_step), flush=True)


def _line(values: Mapping[str, str], step: int, run: Activity | None, *, with_time: bool) -> str:
    parts = [f"step {position(step, None if run is None else run.total)}"]
    parts.append(" ".join(f"{name} {value}" for name, value in values.items()))
    return " | ".join(parts + ([f"eta {clock(run.seconds_left)}"] if run is not None and with_time else []))


def _printed(values: Mapping[str, float]) -> dict[str, str]:
    """Returns the values for a person, by short names."""
    left_out = {*_UNPRINTED, "targets_per_second" if "tokens_per_second" in values else ""}
    return {_SHORT.get(name, name): _short(name, value) for name, value in values.items() if name not in left_out}


def _short(name: str, value: float) -> str:
    if name.endswith("_per_second"):
        return f"{value:,.0f}"
    return f"{value:.3g}" if name in _THREE_DIGITS else f"{value:.4f}"
