"""Logs metrics to SwanLab."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.distributed.signals import keep_handlers
from arctic_training.errors.types import InputError
from arctic_training.tracker.samples import ImageSamples, Samples, TextSamples
from arctic_training.tracker.tracker import Tracker

if TYPE_CHECKING:
    import swanlab


class SwanlabConfig(ComponentConfig):
    """Options of the tracker `swanlab`."""

    libraries = {"swanlab": "arctic_training[swanlab]"}

    workspace: str | None = None
    """Account or team (default: the user's own)."""
    project: str = "arctic-training"
    """Project of the run."""
    name: str | None = None
    """Name of the run (default: that of the run folder)."""
    mode: Literal["online", "offline"] | None = None
    """Offline, the metrics stay in the run folder until ``swanlab sync`` uploads them (default: ``SWANLAB_MODE``, else
    online)."""


class SwanlabTracker(Tracker[SwanlabConfig]):
    """Logs to a run of SwanLab; a resumed run continues the same one."""

    name = "swanlab"
    _run: "swanlab.Run"

    def check(self) -> None:
        """Raises `InputError` where no key is stored, and the library's error when the server takes no login."""
        import swanlab

        if self._is_online():
            swanlab.login()

    def check_offline(self) -> None:
        """Raises `InputError` where no key is stored."""
        self._is_online()

    def _is_online(self) -> bool:
        settings = self._settings()
        if settings.mode == "online" and not settings.api_key:
            mend = "run `swanlab login`, set SWANLAB_API_KEY, or let mode be offline"
            raise InputError(f"trackers: swanlab: nobody is logged in; {mend}")
        return bool(settings.mode == "online")

    def _settings(self) -> "swanlab.Settings":
        """Returns the settings of the environment with the mode of the recipe, and without questions."""
        from swanlab import Settings

        mode = {"mode": self.config.mode} if self.config.mode else {}
        probe = Settings.Probe(requirements=False)  # pip takes four seconds to list what environment.json has
        return Settings(**mode, interactive=False, probe=probe, terminal=Settings.Terminal(proxy_type="none"))

    def files(self, run_dir: Path) -> list[Path]:
        return [run_dir / "swanlab" / "run_id"]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        import swanlab

        (note,) = self.files(run_dir)
        number = note.read_text().strip() if step and note.exists() else None
        with keep_handlers():  # its own would end the run there at a Ctrl-C, while training still saves
            self._run = swanlab.init(
                workspace=self.config.workspace,
                project=self.config.project,
                name=self.config.name or run_dir.name,
                log_dir=str(note.parent),
                config=dict(recipe),
                id=number,
                resume="allow",
                settings=self._settings(),
            )
        note.parent.mkdir(exist_ok=True)
        note.write_text(f"{self._run.id}\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        import swanlab

        if isinstance(samples, ImageSamples):
            self._run.log({name: swanlab.Image(samples.grid.squeeze(2).numpy())}, step=step)
        elif isinstance(samples, TextSamples) and samples.rows:
            texts = ["\n".join(f"{key}: {value}" for key, value in row.items()) for row in samples.rows]
            self._run.log({name: [swanlab.Text(text) for text in texts]}, step=step)

    def finish(self, failed: bool) -> None:
        with keep_handlers():
            self._run.finish("crashed" if failed else "success", error="the run failed" if failed else None)
