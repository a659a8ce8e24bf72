"""The section of a model, as far as every model has one."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from arctic_training.config.sections.base import ComponentConfig

_LONG = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


def _short(value: Any) -> Any:
    return _LONG.get(str(value).removeprefix("torch."), value)


DType = Annotated[Literal["bf16", "fp16", "fp32"], BeforeValidator(_short)]


class ModelConfig(ComponentConfig):
    dtype: DType = "bf16"
    """Type of the weights in forward and backward: bf16, fp16 or fp32. Below fp32 the optimizer keeps fp32 weights."""

    @property
    def unshareable(self) -> str:
        """Why processes cannot share sequences of such a model, and what to write, where the section alone says so."""
        return ""
