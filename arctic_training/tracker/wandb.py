"""Logs metrics to Weights & Biases."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.config.sections.wandb import WandbConfig
from arctic_training.errors.types import InputError
from arctic_training.metrics import merge_metrics
from arctic_training.tracker.samples import ImageSamples, Samples, TextSamples
from arctic_training.tracker.tracker import Tracker

if TYPE_CHECKING:
    import wandb

_FINISH = 30
"""Seconds that the end of a run waits for the network; `wandb sync` sends the rest later."""


class WandbTracker(Tracker[WandbConfig]):
    """Logs to a run of Weights & Biases; a resumed run continues the same one."""

    name = "wandb"
    _run: "wandb.Run"

    def check(self) -> None:
        """Raises `InputError` when the server is not reached or knows no such login.

        It takes ten seconds without a network, and never prompts for input.
        """
        self._login(verify=True)

    def check_offline(self) -> None:
        """Raises `InputError` where no login is stored."""
        self._login(verify=False)

    def _login(self, *, verify: bool) -> None:
        import wandb

        with _refusing():
            # what it prints of a login, it asks the server for
            options = ({"mode": self.config.mode} if self.config.mode else {}) | ({} if verify else {"silent": True})
            settings = wandb.Settings(**options) if options else None
            is_online = wandb.setup(settings).settings.mode in ("online", "shared")
            if is_online and not wandb.login(prompt=False, verify=verify):
                raise wandb.Error("nobody is logged in")

    def files(self, run_dir: Path) -> list[Path]:
        return [run_dir / "wandb" / "run_id"]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        import wandb

        (note,) = self.files(run_dir)
        number = note.read_text().strip() if step and note.exists() else None
        with _refusing():
            self._run = wandb.init(
                entity=self.config.entity,
                project=self.config.project,
                name=self.config.name,
                mode=self.config.mode,
                config=dict(recipe),
                dir=run_dir,
                id=number,
                resume="allow",
                settings=wandb.Settings(finish_timeout=_FINISH),
            )
        note.parent.mkdir(exist_ok=True)
        note.write_text(f"{self._run.id}\n")
        # wandb's own count only rises: what a run repeats from its checkpoint on would be thrown away
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(merge_metrics({"step": step}, values))

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        import wandb

        if isinstance(samples, ImageSamples):
            self._run.log({"step": step, name: wandb.Image(samples.grid.squeeze(2).numpy())})
        elif isinstance(samples, TextSamples) and samples.rows:
            columns: list[str | int] = [*samples.rows[0]]
            rows = [[row.get(name) for name in samples.rows[0]] for row in samples.rows]
            self._run.log({"step": step, name: wandb.Table(columns=columns, data=rows)})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuses the run for what the library refuses inside."""
    import wandb

    try:
        yield
    except wandb.Error as error:
        cause = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        mend = "run `wandb login`, set WANDB_API_KEY, or let wandb.mode be offline"
        raise InputError(f"wandb: {cause}; {mend}") from error
