"""The section of Weights & Biases."""

from pydantic import field_validator

from arctic_training.config.base import BaseConfig


class WandbConfig(BaseConfig):
    enable: bool = False
    """Not built yet."""
    entity: str | None = None
    """Account or team."""
    project: str = "arctic-training"
    """Where the run stands there."""
    name: str | None = None
    """What the run is called there."""

    @field_validator("enable")
    @classmethod
    def _is_built(cls, value: bool) -> bool:
        if value:
            raise ValueError("the wandb tracker is not built yet; metrics are in the run folder's metrics.jsonl")
        return value
