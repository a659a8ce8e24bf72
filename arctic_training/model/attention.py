"""Attention within each document of a packed row, without a mask; known to transformers as ``documents``."""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from arctic_training.distributed.sequence_parallel import (
    SequenceShard,
    gather_heads_scatter_seq,
    gather_seq_scatter_heads,
)
from arctic_training.errors.types import ModelError

NAME = "documents"

_FEWEST_QUERIES = 128
"""Queries at a time where a sliding window is shorter: smaller products would not pay."""

_lengths: Any = WeakTensorKeyDictionary()
"""The lengths of documents, by the tensor that says where they end."""

_PACKED: ContextVar[bool] = ContextVar("packed", default=False)
"""Whether the forward pass under way was told where its documents end, so that no mask is wanted."""
_KNOWN: ContextVar[bool] = ContextVar("known", default=False)
"""Whether what attends in it knows the documents, so that positions need not be searched for them."""
_ONE_EACH: ContextVar[bool] = ContextVar("one_each", default=False)
"""Whether each row is one document."""


def register() -> None:
    """Make ``attn_implementation="documents"`` known to transformers; may be called again."""
    from transformers import masking_utils
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not hasattr(masking_utils.find_packed_sequence_indices, "__wrapped__"):
        masking_utils.find_packed_sequence_indices = _unless_known(masking_utils.find_packed_sequence_indices)
    global _one_by_one, _shared
    if not hasattr(_one_by_one, "_torchdynamo_disable"):
        # a compiled graph would be made anew for every packing layout; said here, since it imports the compiler
        _one_by_one = torch.compiler.disable(_one_by_one)  # type: ignore[no-untyped-call]
        _shared = torch.compiler.disable(_shared)  # type: ignore[no-untyped-call]
    ALL_ATTENTION_FUNCTIONS.register(NAME, document_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, document_mask)


def _unless_known(search: Callable[..., Any]) -> Callable[..., Any]:
    """Returns transformers' search for documents, which a GPU is waited for, as one that is left out where known."""

    @functools.wraps(search)
    def find(*args: Any, **kwargs: Any) -> Any:
        return None if _KNOWN.get() or _ONE_EACH.get() else search(*args, **kwargs)

    return find


@contextmanager
def one_document_each() -> Iterator[None]:
    """Says of the forward passes inside that each of their rows is one document, with padding at most behind it."""
    before = _ONE_EACH.set(True)
    try:
        yield
    finally:
        _ONE_EACH.reset(before)


def supports(model_class: Any, config: Any) -> bool:
    """Whether a model's attention is causal, within an optional sliding window, and nothing else.

    Not so: attention in chunks, soft-capped scores, attention sinks, layers that hand a state on from token to token;
    such a model keeps its own implementation.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    # what transformers can give to flash attention is told to the attention function, and not by a mask alone
    told = all(getattr(model_class, f"_supports_{what}", False) for what in ("sdpa", "flash_attn", "attention_backend"))
    odd = ("attention_chunk_size", "attn_logit_softcapping", "is_encoder_decoder")
    return (
        told
        and _forwards_kwargs(model_class)
        and kinds <= {"full_attention", "sliding_attention"}
        and not any(getattr(text, name, None) for name in odd)
        and (not _slides(text, kinds) or _passes_sliding_window(model_class))
    )


def keeps_documents_apart(config: Any) -> bool:
    """Whether samples packed into one row cannot see each other: not where layers hand a state on."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    stateful = ("mamba", "rwkv", "xlstm", "jamba", "zamba", "bamba", "nemotron_h", "falcon_h1", "recurrent_gemma")
    attends = all(kind.endswith("attention") and kind != "linear_attention" for kind in kinds)
    return attends and not any(name in config.model_type for name in stateful)


def _slides(text: Any, kinds: set[str]) -> bool:
    return bool(getattr(text, "sliding_window", None)) and (not kinds or "sliding_attention" in kinds)


def _forwards_kwargs(model_class: Any) -> bool:
    """Not every layer hands on to its attention what it is told beside the mask."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(model_class) or model_class))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = [(node.func.attr, {word.arg for word in node.keywords}) for node in calls]  # type: ignore[attr-defined]
    # the attention of the model itself is what a cache is for; of `**kwargs` the name is None
    own = (words for name, words in named if name.endswith(("attn", "attention")) and "cross" not in name)
    return all(None in words for words in own if "past_key_values" in words)


def _passes_sliding_window(model_class: Any) -> bool:
    """Some models put their window into the mask only."""
    source = inspect.getsource(inspect.getmodule(model_class) or model_class)
    return re.search(r"\bsliding_window=(self\.|getattr)", source) is not None


def watch(model: nn.Module) -> None:
    """Tell apart, at each call of ``model``, packed rows that say where their documents end from everything else."""

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        packed = kwargs.get("cu_seq_lens_q") is not None and kwargs.get("attention_mask") is None
        _PACKED.set(packed)
        how = str(getattr(getattr(module, "config", None), "_attn_implementation", ""))
        _KNOWN.set(packed and how.startswith((NAME, "flash")))
        # with a cache, transformers takes a packed row for one document, in every implementation but ours
        return args, {**kwargs, "use_cache": kwargs.get("use_cache") or False} if packed else kwargs

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _PACKED.set(False)
        _KNOWN.set(False)

    # the backbone: an adapter around the model calls its forward past its hooks
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), model)
    backbone.register_forward_pre_hook(enter, with_kwargs=True)
    backbone.register_forward_hook(leave, always_call=True)


def document_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for packed rows; for padding, caches and everything else, the one of ``sdpa``."""
    from transformers.masking_utils import sdpa_mask

    if _PACKED.get():
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def document_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sequence_share: SequenceShard | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``query`` is [1, heads, T, D], ``key`` and ``value`` [1, key heads, T, D]; returns [1, T, heads, D] and None.

    ``cu_seq_lens_q`` [documents + 1] says where the documents of the row begin and end. With a mask, or without
    documents, this is transformers' ``sdpa``. With a ``sequence_share`` T is this process's part of the row, and a mask
    is a `ModelError`.
    """
    if sequence_share is not None:
        if attention_mask is not None:
            raise ModelError("sequence_parallel_size: the model makes a mask of its part of a sequence; leave it out")
        told = (dropout, scaling, sliding_window, cu_seq_lens_q, max_length_q)
        return _shared(module, query, key, value, sequence_share.size, *told), None
    if attention_mask is None and cu_seq_lens_q is None and _PACKED.get():
        raise ModelError(
            f"model.attn_implementation: {type(module).__name__} is not told where documents end; give sdpa"
        )
    if attention_mask is not None or cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    if not dropout and _has_kernel(query, value):
        return _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    return _one_by_one(query, key, value, cu_seq_lens_q, dropout, scaling, sliding_window), None


def _shared(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, *told: Any
) -> torch.Tensor:
    """Attention of whole documents with some heads each, by all processes that share them."""
    query, key, value = gather_seq_scatter_heads((query, key, value), size)
    return gather_heads_scatter_seq(document_attention(module, query, key, value, None, *told)[0], size)


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch's kernel for documents takes heads of this type and width, on a GPU of this generation."""
    width = query.shape[-1]
    if query.device.type != "cuda" or query.dtype == torch.float32 or value.shape[-1] != width:
        return False
    return width <= 256 and width % 8 == 0 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int | None,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = longest or query.shape[2]
    grouped: Any = {"enable_gqa": query.shape[1] != key.shape[1]} if _names_gqa(varlen_attn) else {}
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        cu_seq_q=ends,
        cu_seq_k=ends,
        max_q=longest,
        max_k=longest,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **grouped,
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


@functools.cache
def _names_gqa(kernel: Callable[..., Any]) -> bool:
    """Returns False for kernels of torch before 2.12, which take fewer key heads without the keyword."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    if query.is_cuda and query.dtype == torch.float32:
        # torch's kernels without a table of scores take as many key heads as query heads in fp32
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    lengths = _lengths_of(ends)
    # split and cat: the gradient of a slice would be as long as the row, once for every document
    parts = zip(*(torch.split(part, lengths, dim=2) for part in (query, key, value)), strict=True)
    told: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    outs = []
    for q, k, v in parts:
        if window and q.shape[2] > window:
            outs += _in_window(q, k, v, window, told)
        else:
            outs.append(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **told))
    return torch.cat([out.transpose(1, 2) for out in outs], dim=1)


def _lengths_of(ends: torch.Tensor) -> list[int]:
    """Returns the documents' lengths; every layer asks with the same tensor, and a GPU is waited for once."""
    version, lengths = _lengths.get(ends, (-1, []))  # type: tuple[int, list[int]]
    if version != ends._version:
        lengths = ends.diff().tolist()
        _lengths[ends] = ends._version, lengths
    return lengths


def _in_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, told: dict[str, Any]
) -> list[torch.Tensor]:
    """A token sees itself and the ``window - 1`` before it: some queries at a time, with the keys in their reach."""
    length, size = query.shape[2], max(window, _FEWEST_QUERIES)
    outs = []
    for start in range(0, length, size):
        end, first = min(start + size, length), max(0, start - window + 1)
        rows, columns = torch.arange(start, end, device=query.device), torch.arange(first, end, device=query.device)
        distance = rows[:, None] - columns
        mask = (distance >= 0) & (distance < window)
        reach = (slice(None), slice(None), slice(first, end))
        q, k, v = query[:, :, start:end], key[reach], value[reach]
        outs.append(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **told))
    return outs
