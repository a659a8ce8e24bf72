"""The section of the data, as far as all data have one."""

from pydantic import Field

from arctic_training.config.base import ComponentConfig


class DataConfig(ComponentConfig):
    seed: int = Field(default=42, ge=0)
    """Seed of the order of the rows, and of every choice among them."""
    dl_num_workers: int = Field(default=2, ge=0)
    """Processes that read and collate batches beside each training process; 0: the training process itself."""
    drop_last: bool = False
    """Leave out the rows that do not fill a last global batch; else they make a smaller one."""


class DataSourceConfig(ComponentConfig):
    pass
