"""What all recipe sections share."""

from pydantic import BaseModel, ConfigDict


class BaseConfig(BaseModel):
    """Reading one is pure: no network, no file, no process group, no logger."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False, populate_by_name=True
    )


class ComponentConfig(BaseConfig):
    """The section of a recipe that one registered class reads."""

    type: str = ""
    """The registered class that reads this section; the trainer's first when left out."""
