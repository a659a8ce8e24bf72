"""Tensor parallelism: processes divide the weights of a model's layers, by DeepSpeed's AutoTP.

After Shoeybi et al. 2019 (Megatron-LM, arXiv 1909.08053), section 3: of two linear layers in a row the first is divided
by its outputs and the second by its inputs, so that the two need one sum over the processes in the forward pass and one
in the backward pass. transformers says in the config of a model (``base_model_tp_plan``) which layers these are.
Embeddings, norms and the output layer are whole on every process.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from arctic_training.distributed import process_group
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

_STYLES: Mapping[str, Mapping[str, object]] = {
    "colwise": {"partition_type": "column"},
    "rowwise": {"partition_type": "row"},
    # a whole weight of which each process has a part of the gradient
    "replicated_with_grad_allreduce": {"partition_type": "skip", "grad_allreduce": True},
}
"""The styles of transformers' plans, as DeepSpeed describes them."""
_WHOLE = ("embed_tokens", "lm_head")
"""Layers that stay whole, whatever the plan says."""


def problem(model: "PreTrainedModel", size: int) -> str:
    """Returns why ``size`` processes cannot divide ``model``, on any device; empty where they can."""
    name, text = type(model.config).__name__, model.config.get_text_config()
    if model.config.model_type not in MODEL_TYPES:
        return f"the division of a {name} is not tested, only that of {', '.join(MODEL_TYPES)}"
    layers = list(_planned(model))
    if odd := sorted({style for _, style, _ in layers} - _STYLES.keys()):
        return f"transformers divides layers of {name} by {odd[0]}, which is not known here"
    planned = {id(one) for _, _, part in layers for one in part.parameters()}
    for parent in {path.rpartition(".")[0] for path, _, _ in layers}:
        for own, parameter in model.get_submodule(parent).named_parameters():
            if id(parameter) not in planned:
                return f"transformers does not say how processes divide {parent}.{own} of {name}"
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    linear = [(style, part) for _, style, part in layers if isinstance(part, nn.Linear)]
    widths = {part.in_features if style == "rowwise" else part.out_features for style, part in linear}
    if (common := math.gcd(heads, kv_heads, *widths)) % size:
        divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        what = f"the {heads} heads ({kv_heads} of keys and values) and the layers of {name}"
        return f"{size} processes cannot divide {what}; these can: {divisors}"
    return ""


def block(model: "PreTrainedModel", size: int) -> dict[str, Any]:
    """Returns DeepSpeed's block ``tensor_parallel``, by which ``size`` processes divide ``model``."""
    specs = [{"patterns": [rf"{re.escape(name)}\.weight$"], **_STYLES[style]} for name, style, _ in _planned(model)]
    return {"autotp_size": size, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


def divisible_numel(model: nn.Module) -> int:
    """Returns how many weights of ``model`` processes could divide; 0 for a model of another type."""
    if getattr(getattr(model, "config", None), "model_type", None) not in MODEL_TYPES:
        return 0
    linear = (part for _, _, part in _planned(model) if isinstance(part, nn.Linear))
    return sum(parameter.numel() for part in linear for parameter in part.parameters())


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
