"""A model of transformers that a Python program passes, in the place of one that is loaded."""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from arctic_training.engine.zero import is_partitioned
from arctic_training.errors.types import ModelError
from arctic_training.model.pretrained import Pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class PassedModel(Pretrained):
    """Counterpart of `Pretrained` for a model that is loaded: ``module`` itself takes the place of its files."""

    def __init__(self, module: "PreTrainedModel", *, key: str) -> None:
        """``key`` is the recipe's section of the model, for error messages."""
        super().__init__(type(module).__name__, trust_remote_code=False, key=key)
        self.module = module

    def config(self, overrides: Mapping[str, Any]) -> tuple[Any, bool]:
        return copy.deepcopy(self.module.config), True

    def on_meta_device(
        self, auto_class: type["_BaseAutoModelClass"], config: "PreTrainedConfig", options: Mapping[str, Any]
    ) -> nn.Module:
        meta: nn.Module = self._prepared(on_meta_device(self.module), config, options)
        return meta

    def check_files(self, meta_model: nn.Module) -> None:
        """Does nothing: there are no files."""

    def from_pretrained(
        self, auto_class: type["_BaseAutoModelClass"], config: "PreTrainedConfig", options: Mapping[str, Any]
    ) -> nn.Module:
        """Returns the module itself, in the dtype and with the attention of ``options``. Raises `ModelError`."""
        module: nn.Module = self._prepared(self.module, config, options)
        return module

    def _prepared(
        self, module: "PreTrainedModel", config: "PreTrainedConfig", options: Mapping[str, Any]
    ) -> "PreTrainedModel":
        cast_parameters(module, options["dtype"])
        for name in ("id2label", "label2id"):
            setattr(module.config, name, getattr(config, name))
        if (implementation := options["attn_implementation"]) is not None:
            self._call(lambda: module.set_attn_implementation(implementation))
        return module

    def _call(self, load: Callable[[], T]) -> T:
        try:
            return load()
        except Exception as error:
            raise ModelError(self._message(error)) from error


def on_meta_device(module: M) -> M:
    """Returns a copy of ``module`` whose parameters and buffers have a shape and no values."""
    tensors = [*module.parameters(), *module.buffers()]
    memo = {id(one): torch.empty_like(one, device="meta") for one in tensors}
    for one in module.parameters():
        memo[id(one)] = nn.Parameter(memo[id(one)], requires_grad=one.requires_grad)
    return copy.deepcopy(module, memo)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters of ``module`` in place, and no buffer: rotary frequencies are fp32 in any model."""
    for parameter in module.parameters():
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def require_own_weights(module: nn.Module, key: str) -> None:
    """Raises `ModelError`, which begins with ``key``, for a module that cannot be trained as it is."""
    problem = ""
    if hasattr(module, "peft_config"):
        problem = "has an adapter already; pass the model without it, and give model.peft_config"
    elif is_partitioned(module):
        problem = "is left in the shards of a run at ZeRO stage 3; build it again, or load what was saved of it"
    elif any(parameter.is_meta for parameter in module.parameters()):
        problem = "has parameters without values, on the meta device; load its weights"
    elif other := next((one.dtype for one in module.parameters() if not one.is_floating_point()), None):
        problem = f"has parameters of {other}, as a quantized model has; pass it in bf16, fp16 or fp32"
    if problem:
        raise ModelError(f"{key}: the passed {type(module).__name__} {problem}")
