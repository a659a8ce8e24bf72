"""Activation checkpointing: layers are computed again for the gradient, wholly or but for their products."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.types import ModelError
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.model.transforms.tiled_mlp import is_in_tile

if TYPE_CHECKING:
    from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext
    from transformers import PreTrainedModel

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class ActivationCheckpointingConfig(ComponentConfig):
    """The keys of `ActivationCheckpointing`."""

    selective: bool = False
    """Keep what linear layers and attention return, and compute only the rest again."""
    offload: bool = False
    """Keep the inputs of the layers in main memory."""


class ActivationCheckpointing(ModelTransform[ActivationCheckpointingConfig]):
    """Keeps only the input of each layer, and computes its activations again for the gradient."""

    name = "activation_checkpointing"

    def __call__(self, model: "PreTrainedModel") -> nn.Module:
        """Raises `ModelError` for a model that does not support it."""
        if not getattr(model, "supports_gradient_checkpointing", hasattr(model, "gradient_checkpointing_enable")):
            raise ModelError(f"{type(model).__name__} cannot checkpoint its activations")
        options: dict[str, object] = {"use_reentrant": False}
        if self.config.selective:
            options["context_fn"] = selective_contexts
        # on a CPU they are in main memory already
        offload = {"offload": True} if self.config.offload and torch.accelerator.is_available() else {}
        try:
            if hasattr(model, "activation_checkpointing_enable"):
                model.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **offload)
            else:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **offload)
        except TypeError as error:  # a method of its own, which takes fewer arguments
            raise ModelError(f"{type(model).__name__} cannot checkpoint its activations so: {error}") from error
        result: nn.Module = model
        return result


def is_product(operation: object) -> bool:
    """Returns whether an operation of torch is one of those that selective checkpointing keeps: the product of a linear
    layer, or the attention of a kernel that keeps no scores, by whichever name. None inside a tile of an MLP is."""
    if is_in_tile():
        return False
    return operation in _PRODUCTS or "attention" in (name := str(operation)) or "attn" in name


def selective_contexts() -> tuple["_Products", "_Products"]:
    """Returns the contexts of a forward pass and of its repetition, for torch's ``checkpoint``."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    first, again = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return _Products(first), _Products(again)


def _policy(
    context: "SelectiveCheckpointContext", operation: object, *args: object, **kwargs: object
) -> "CheckpointPolicy":
    from torch.utils.checkpoint import CheckpointPolicy

    return CheckpointPolicy.MUST_SAVE


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows only `is_product` operations to ``mode``, which counts all that it sees and expects as many in both passes.

    Others may differ: those with which ZeRO stage 3 gathers weights do.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode = mode

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not is_product(func):
            return func(*args, **(kwargs or {}))
        return self.mode.__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
