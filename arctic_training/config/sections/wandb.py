"""The ``wandb`` section, and the section of the tracker of Weights & Biases."""

from typing import Literal

from arctic_training.config.sections.base import ComponentConfig


class WandbConfig(ComponentConfig):
    """The keys of the tracker."""

    libraries = {"wandb": "arctic_training[wandb]"}

    entity: str | None = None
    """Account or team (default: the user's own)."""
    project: str = "arctic-training"
    """Project of the run."""
    name: str | None = None
    """Name of the run (default: chosen by the server)."""
    mode: Literal["online", "offline"] | None = None
    """Offline, the metrics stay in the run folder until ``wandb sync`` uploads them (default: ``WANDB_MODE``, else
    online)."""


class WandbSection(WandbConfig):
    """The recipe's section ``wandb``: the tracker, without naming it under ``trackers``."""

    type: Literal["wandb"] = "wandb"
    """Always ``wandb``."""
    enable: bool = False
    """Report the run to Weights & Biases."""
