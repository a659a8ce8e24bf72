"""Tensor parallelism: processes divide the weights of a model's layers, by the layers of DeepSpeed's AutoTP.

After Shoeybi et al. 2019 (Megatron-LM, arXiv 1909.08053), section 3: of two linear layers in a row the first is divided
by its outputs and the second by its inputs, so that the two need one sum over the processes in the forward pass and one
in the backward pass. transformers says in the config of a model (``base_model_tp_plan``) which layers these are.
Embeddings, norms and the output layer are whole on every process.
"""

import importlib
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from arctic_training.distributed import process_group
from arctic_training.engine.internals.mesh import begin_tensor_parallel, set_divided
from arctic_training.engine.internals.parameters import full_shape, shard_dim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = (
    "cohere2",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "ministral",
    "mistral",
    "olmo",
    "phi",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "starcoder2",
)
"""The types of models whose loss and gradient are compared with those of whole models, by
``tests/engine/test_tensor_parallel.py``."""

_COLWISE, _ROWWISE, _REPLICATED = "colwise", "rowwise", "replicated_with_grad_allreduce"
"""The styles of transformers' plans: a linear layer divided by its outputs, or by its inputs, and a whole weight of
which each process has a part of the gradient."""
_WHOLE = ("embed_tokens", "lm_head")
"""Layers that stay whole, whatever the plan says."""


def problem(model: nn.Module, size: int) -> str:
    """Returns why ``size`` processes cannot divide ``model``, on any device; empty where they can.

    It is a model of transformers, with or without an adapter of PEFT.
    """
    base = _base(model)
    name, text = type(base.config).__name__, base.config.get_text_config()
    if base.config.model_type not in MODEL_TYPES:
        return f"the division of a {name} is not tested, only that of {', '.join(MODEL_TYPES)}"
    layers = list(_planned(base))
    if odd := sorted({style for _, style, _ in layers} - {_COLWISE, _ROWWISE, _REPLICATED}):
        return f"transformers divides layers of {name} by {odd[0]}, which is not known here"
    planned = {id(one) for _, _, part in layers for one in part.parameters()}
    for parent in {path.rpartition(".")[0] for path, _, _ in layers}:
        for own, parameter in base.get_submodule(parent).named_parameters():
            if id(parameter) not in planned:
                return f"transformers does not say how processes divide {parent}.{own} of {name}"
    for path, style, part in layers:
        if style != _REPLICATED and _linear(part) is None:
            return f"processes divide the linear layers of {name} and plain LoRA, and {path} is {_described(part)}"
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    linear = [(style, one) for _, style, part in layers if (one := _linear(part)) is not None]
    widths = {one.in_features if style == _ROWWISE else one.out_features for style, one in linear}
    if (common := math.gcd(heads, kv_heads, *widths)) % size:
        divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        what = f"the {heads} heads ({kv_heads} of keys and values) and the layers of {name}"
        return f"{size} processes cannot divide {what}; these can: {divisors}"
    return ""


def divide(model: nn.Module, size: int) -> None:
    """Leaves this process its part of the layers of ``model``, which ``size`` consecutive ranks divide.

    The parameters stay the same objects. `problem` checks what can be divided; all ranks call it together.
    """
    group, base = begin_tensor_parallel(size), _base(model)
    layers = importlib.import_module("deepspeed.module_inject.layers")
    kinds = {_COLWISE: layers.LinearLayer, _ROWWISE: layers.LinearAllreduce}
    for path, style, part in list(_planned(base)):
        if style == _REPLICATED:
            for parameter in part.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(partial(_sum_over, group))  # type: ignore[no-untyped-call]
            continue
        for own, layer in _divided_layers(style, part):
            base.set_submodule(f"{path}.{own}" if own else path, kinds[style](layer, group))
    set_divided(model)


def is_divided(model: nn.Module) -> bool:
    """Returns whether processes divide the weights of ``model``."""
    return any(shard_dim(parameter) is not None for parameter in model.parameters())


def _sum_over(group: dist.ProcessGroup, gradient: torch.Tensor) -> torch.Tensor:
    total = gradient.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _divided_layers(style: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields, by their paths in ``part``, the linear layers that are divided as one of ``style``.

    Those of LoRA are A, from the inputs, and B, to the outputs: what is between the two is whole on every process.
    """
    if isinstance(part, nn.Linear):
        yield "", part
        return
    yield "base_layer", part.get_submodule("base_layer")
    own = "lora_A" if style == _ROWWISE else "lora_B"
    for name, layer in part.get_submodule(own).named_children():
        yield f"{own}.{name}", layer


def _linear(part: nn.Module) -> nn.Linear | None:
    """Returns the linear layer that ``part`` is, or that has a plain LoRA; None for any other module."""
    variants: object = getattr(part, "lora_variant", None)
    layer: object = part.base_layer if hasattr(part, "lora_A") and not variants else part
    return layer if isinstance(layer, nn.Linear) else None


def _described(part: nn.Module) -> str:
    variants = getattr(part, "lora_variant", None) or {}
    kinds = {type(one).__name__.removesuffix("LinearVariant") for one in variants.values()}
    return " and ".join(sorted(kinds)) or f"of {type(part).__module__}.{type(part).__name__}"


def _base(model: "PreTrainedModel") -> "PreTrainedModel":
    """Returns the model of transformers in a PeftModel, or ``model`` itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def count_divisible(model: nn.Module) -> tuple[int, int]:
    """Returns how many weights of ``model`` processes could divide, and how many of these are trained; 0 for a model of
    another type."""
    base = _base(model)
    if getattr(getattr(base, "config", None), "model_type", None) not in MODEL_TYPES:
        return 0, 0
    layers = (one for _, style, part in _planned(base) if _linear(part) for _, one in _divided_layers(style, part))
    sizes = [(one.numel(), one.requires_grad) for layer in layers for one in layer.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


def _planned(model: "PreTrainedModel") -> Iterator[tuple[str, str, nn.Module]]:
    """Yields name, style and module of each layer that transformers' plan names."""
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    plan = {key: style for key, style in (model.config.base_model_tp_plan or {}).items() if key not in _WHOLE}
    styles = {re.compile(re.escape(prefix + key).replace(r"\*", r"\d+")): style for key, style in plan.items()}
    for name, part in model.named_modules():
        for pattern, style in styles.items():
            if pattern.fullmatch(name):
                yield name, style, part


def join(parameter: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Returns the whole of what processes hold in parts for ``parameter``: itself, or its gradient.

    ``local`` is the part of this process, and the whole where the parameter is not divided. All ranks call it together.
    """
    dim = shard_dim(parameter)
    if dim is None:
        return local
    size = full_shape(parameter)[dim] // local.shape[dim]
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, local.contiguous(), group=process_group.rank_group(size))
    return torch.cat(parts, dim)


def cut(parameter: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Returns the part of ``full``, of the shape of the whole parameter, that this process holds; a view."""
    dim = shard_dim(parameter)
    if dim is None:
        return full
    length = parameter.shape[dim]
    index = process_group.rank() % (full.shape[dim] // length)
    return full.narrow(dim, index * length, length)
