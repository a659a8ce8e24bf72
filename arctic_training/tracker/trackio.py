"""Logs metrics to Trackio."""

from collections.abc import Mapping
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.tracker.samples import ImageSamples, Samples, TextSamples
from arctic_training.tracker.tracker import Tracker

if TYPE_CHECKING:
    from trackio.run import Run


class TrackioConfig(ComponentConfig):
    """Options of the tracker `trackio`."""

    libraries = {"trackio": "arctic_training[trackio]"}

    project: str = "arctic-training"
    """Project of the run; it is made where there is none."""
    name: str | None = None
    """Name of the run (default: that of the run folder)."""
    space_id: str | None = None
    """Space of the Hugging Face Hub that stores the run (default: ``TRACKIO_SPACE_ID``, else the folder ``TRACKIO_DIR``
    of this machine)."""
    server_url: str | None = None
    """Trackio's own server that stores the run (default: ``TRACKIO_SERVER_URL``, else the folder ``TRACKIO_DIR`` of
    this machine)."""


class TrackioTracker(Tracker[TrackioConfig]):
    """Logs to a run of Trackio; a resumed run continues the same one."""

    name = "trackio"
    _run: "Run"

    def files(self, run_dir: Path) -> list[Path]:
        return [run_dir / "trackio_run_id"]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        import trackio

        (note,) = self.files(run_dir)
        number = note.read_text().strip() if step and note.exists() else None
        # a context of its own: the library ends the run that it finds in the context, that of another tracker
        self._run = Context().run(
            trackio.init,
            project=self.config.project,
            name=self.config.name or run_dir.name,
            space_id=self.config.space_id,
            server_url=self.config.server_url,
            config=dict(recipe),
            resume="allow" if number else "never",
            embed=False,
            auto_log_cpu=False,  # the metrics hold the memory of the run; a monitor would log before the id is set
            auto_log_gpu=False,
        )
        if number:
            self._run.id = number  # the library resumes the newest run of that name, which may be another
        note.write_text(f"{self._run.id}\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        import trackio

        if isinstance(samples, ImageSamples):
            self._run.log({name: trackio.Image(samples.grid.expand(-1, -1, 3).numpy())}, step=step)
        elif isinstance(samples, TextSamples):
            self._run.log({name: trackio.Table(data=[dict(row) for row in samples.rows])}, step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish()
