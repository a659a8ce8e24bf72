"""What a recipe says of Weights & Biases."""

from typing import Literal

from arctic_training.config.sections.base import ComponentConfig


class WandbConfig(ComponentConfig):
    """The keys of the tracker."""

    entity: str | None = None
    """Account or team; the user's own when left out."""
    project: str = "arctic-training"
    """Where the run stands there."""
    name: str | None = None
    """What the run is called there; two words drawn by the server when left out."""
    mode: Literal["online", "offline"] | None = None
    """Offline, the numbers stay in the run folder, from where ``wandb sync`` sends them; as the environment's
    ``WANDB_MODE`` says when left out, else online."""


class WandbSection(WandbConfig):
    """The recipe's section ``wandb``: the tracker, without naming it under ``trackers``."""

    type: Literal["wandb"] = "wandb"
    """Always that."""
    enable: bool = False
    """Tell the run to Weights & Biases."""
