"""Stop a run from outside, by a file."""

import time
from pathlib import Path

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig


class KillSwitchConfig(ComponentConfig):
    """Options of the kill switch."""

    path: Path | None = None
    """When this file appears, the run finishes its step, saves and stops."""
    seconds: float = 5.0
    """Time between checks: a check of a file on a shared disk can take longer than a step."""


class KillSwitch(Callback[KillSwitchConfig]):
    """Stops the run after the current step when a file appears."""

    name = "kill_switch"
    _looked = 0.0

    def post_step(self, trainer: TrainerView) -> None:
        """Requests a stop when the file exists."""
        now = time.monotonic()
        if self.config.path is None or now - self._looked < self.config.seconds:
            return
        self._looked = now
        if self.config.path.exists():
            trainer.request_stop(f"the kill switch {self.config.path} exists")
