"""Draws the curves of a run as a picture when it ends."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.logging import without_messages
from arctic_training.tracker.records import METRICS, read_records
from arctic_training.tracker.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Values by step, by the name of the metric, by the panel that it is drawn in."""

_MIN_RECORDS = 20
"""Records of the loss from which on there is a picture: fewer are read faster as numbers."""
_MAX_POINTS = 2_000
"""Points of a curve that are drawn at most."""
_MAX_PANELS = 18
_COLUMNS = 3
_NO_CURVES = ("step", "time", "epoch", "num_tokens", "targets_per_second", "data_seconds", "peak_host_memory")
"""What only rises, or is drawn as another curve."""


class CurvesConfig(ComponentConfig):
    """Options of the tracker `curves`."""

    metrics: Path | None = None
    """The file that the tracker `jsonl` writes; ``metrics.jsonl`` in the run folder by default."""


class CurvesTracker(Tracker[CurvesConfig]):
    """Draws ``curves.png`` of the recorded metrics, those before a resume too, when the run ends.

    A panel has the metrics with the same first name: ``loss`` and ``loss/eval``. There is no picture of fewer than 20
    records of the loss.
    """

    name = "curves"
    _run_dir: Path

    def files(self, run_dir: Path) -> list[Path]:
        return [run_dir / "curves.png"]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        self._run_dir = run_dir

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Does nothing: the curves are read from the file, which has those before a resume."""

    def finish(self, failed: bool) -> None:
        curves = read_curves(self.config.metrics or self._run_dir / METRICS)
        (picture,) = self.files(self._run_dir)
        if len(curves.get("loss", {}).get("loss", {})) >= _MIN_RECORDS:
            draw_curves(curves, picture, title=self._run_dir.name)


def read_curves(path: Path) -> Curves:
    """Returns the curves of a file of metrics; of a step that was recorded twice, the later values."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for record in read_records(path)[0]:
        for name, value in record.items():
            if name not in _NO_CURVES and math.isfinite(value):
                curves.setdefault(name.partition("/")[0], {}).setdefault(name, {})[int(record["step"])] = value
    return curves


@without_messages("matplotlib")  # which tells of its cache of fonts
def draw_curves(curves: Curves, path: Path, *, title: str) -> None:
    """Writes the picture ``path``, a PNG, complete or not at all."""
    from matplotlib.figure import Figure

    names = sorted(curves, key=lambda name: (name != "loss", name))[:_MAX_PANELS]
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(5 * _COLUMNS, 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        _draw_panel(panel, name, curves[name])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=100)
    os.replace(unfinished, path)


def _draw_panel(panel: "Axes", name: str, curves: Mapping[str, Mapping[int, float]]) -> None:
    for label, values in curves.items():
        steps = sorted(values)
        steps = steps[:: -(-len(steps) // _MAX_POINTS)]
        style = "o-" if len(steps) < _MIN_RECORDS else "-"
        panel.plot(steps, [values[step] for step in steps], style, label=label, linewidth=1, markersize=3)
    panel.set_title(name)
    panel.set_xlabel("step")
    panel.grid(visible=True, alpha=0.3)
    if len(curves) > 1:
        panel.legend(fontsize="small")
