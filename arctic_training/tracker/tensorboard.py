"""Logs metrics to event files of TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.config.recipe.yaml_writer import write_yaml
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.tracker.samples import ImageSamples, Samples, TextSamples
from arctic_training.tracker.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorboardConfig(ComponentConfig):
    """Options of the tracker `tensorboard`."""

    libraries = {"tensorboard": "arctic_training[tensorboard]"}

    path: Path | None = None
    """The folder of the event files; ``tensorboard`` in the run folder by default."""


class TensorboardTracker(Tracker[TensorboardConfig]):
    """Writes event files, which ``tensorboard --logdir`` shows; those of a resumed run continue its curves."""

    name = "tensorboard"
    _writer: "SummaryWriter"

    def files(self, run_dir: Path) -> list[Path]:
        return [self.config.path or run_dir / "tensorboard"]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        (folder,) = self.files(run_dir)
        # what a run that was killed has logged beyond its checkpoint is hidden: it is logged again
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        if not step:
            self._text("recipe", write_yaml(recipe), step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        if isinstance(samples, ImageSamples):
            self._writer.add_image(name, samples.grid.numpy(), step, dataformats="HWC")
        elif isinstance(samples, TextSamples):
            text = "\n\n".join("\n".join(f"{key}: {value}" for key, value in row.items()) for row in samples.rows)
            self._text(name, text, step)

    def _text(self, name: str, text: str, step: int) -> None:
        # four spaces keep Markdown from reading it
        lines = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text(name, lines, step)

    def finish(self, failed: bool) -> None:
        self._writer.close()
