"""Attention within each document of a packed row, without a mask: ``attn_implementation="documents"``."""

import functools
import inspect
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from arctic_training.distributed.sequence_parallel import (
    SequenceShard,
    gather_heads_scatter_seq,
    gather_seq_scatter_heads,
)
from arctic_training.errors.types import ModelError
from arctic_training.model.transformers_internals import passes_attention_arguments, passes_sliding_window

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "documents"
T = TypeVar("T")

_MIN_QUERY_BLOCK = 128
"""Queries at a time where a sliding window is shorter: smaller products would not pay."""

_lengths: MutableMapping[torch.Tensor, tuple[int, list[int]]] = WeakTensorKeyDictionary()
"""The lengths of documents, by their tensor ``cu_seq_lens_q``."""

_IS_PACKED: ContextVar[bool] = ContextVar("is_packed", default=False)
"""Whether the current forward pass has ``cu_seq_lens_q``, so that it needs no mask."""
_ATTENTION_HAS_DOCUMENTS: ContextVar[bool] = ContextVar("attention_has_documents", default=False)
"""Whether its attention function uses them, so that positions need not be searched for documents."""
_ONE_DOCUMENT_PER_ROW: ContextVar[bool] = ContextVar("one_document_per_row", default=False)
"""Whether each row is one document."""


def register() -> None:
    """Registers ``attn_implementation="documents"`` with transformers; may be called again."""
    from transformers import masking_utils
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not hasattr(masking_utils.find_packed_sequence_indices, "__wrapped__"):
        masking_utils.find_packed_sequence_indices = _skip_if_known(masking_utils.find_packed_sequence_indices)
    global _per_document, _sequence_parallel
    if not hasattr(_per_document, "_torchdynamo_disable"):
        # a compiled graph would be made anew for every packing layout; here, since it imports the compiler
        _per_document = torch.compiler.disable(_per_document)  # type: ignore[no-untyped-call]
        _sequence_parallel = torch.compiler.disable(_sequence_parallel)  # type: ignore[no-untyped-call]
    ALL_ATTENTION_FUNCTIONS.register(NAME, document_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, document_mask)


def _skip_if_known(search: Callable[..., object]) -> Callable[..., object]:
    """Wraps transformers' search for documents, which synchronises with a GPU, to skip it where they are known."""

    @functools.wraps(search)
    def find(*args: object, **kwargs: object) -> object:
        return None if _ATTENTION_HAS_DOCUMENTS.get() or _ONE_DOCUMENT_PER_ROW.get() else search(*args, **kwargs)

    return find


@contextmanager
def one_document_per_row() -> Iterator[None]:
    """Marks each row of the forward passes inside as one document, with padding at most behind it."""
    token = _ONE_DOCUMENT_PER_ROW.set(True)
    try:
        yield
    finally:
        _ONE_DOCUMENT_PER_ROW.reset(token)


def supports_document_attention(model_class: type["PreTrainedModel"], config: "PreTrainedConfig") -> bool:
    """Returns whether a model's attention is causal, within an optional sliding window, and nothing else.

    Attention in chunks, soft-capped scores, attention sinks, and layers that carry a state from token to token are
    something else; such a model keeps its own implementation.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    unsupported = ("attention_chunk_size", "attn_logit_softcapping", "is_encoder_decoder")
    has_window = getattr(text, "sliding_window", None) and (not kinds or "sliding_attention" in kinds)
    return (
        passes_attention_arguments(model_class)
        and kinds <= {"full_attention", "sliding_attention"}
        and not any(getattr(text, name, None) for name in unsupported)
        and (not has_window or passes_sliding_window(model_class))
    )


def supports_packing(config: "PreTrainedConfig") -> bool:
    """Returns whether samples packed into one row can be kept apart: not where layers carry a state along the row."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    stateful = ("mamba", "rwkv", "xlstm", "jamba", "zamba", "bamba", "nemotron_h", "falcon_h1", "recurrent_gemma")
    attends = all(kind.endswith("attention") and kind != "linear_attention" for kind in kinds)
    return attends and not any(name in config.model_type for name in stateful)


def add_packing_hooks(model: nn.Module) -> None:
    """Adds hooks to ``model`` that tell packed rows with ``cu_seq_lens_q`` from all other calls."""

    def enter(module: nn.Module, args: T, kwargs: dict[str, Any]) -> tuple[T, dict[str, Any]]:
        packed = kwargs.get("cu_seq_lens_q") is not None and kwargs.get("attention_mask") is None
        _IS_PACKED.set(packed)
        implementation = str(getattr(getattr(module, "config", None), "_attn_implementation", ""))
        _ATTENTION_HAS_DOCUMENTS.set(packed and implementation.startswith((NAME, "flash")))
        # with a cache, transformers takes a packed row for one document, in every implementation but ours
        return args, {**kwargs, "use_cache": kwargs.get("use_cache") or False} if packed else kwargs

    def leave(module: nn.Module, args: object, output: object) -> None:
        _IS_PACKED.set(False)
        _ATTENTION_HAS_DOCUMENTS.set(False)

    # the backbone: an adapter calls the model's forward past its hooks, and OPT the decoder past those of the backbone
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), model)
    for module in (backbone, getattr(backbone, "decoder", None)):
        if isinstance(module, nn.Module):
            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(leave, always_call=True)


def document_mask(*args: object, **kwargs: object) -> torch.Tensor | None:
    """Returns None for packed rows; otherwise the mask of ``sdpa``, ``[rows, 1, queries, keys]`` (bool) or None."""
    from transformers.masking_utils import sdpa_mask

    if _IS_PACKED.get():
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
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Computes causal attention within each document, by the interface of transformers' attention functions.

    ``query`` is ``[1, heads, T, D]``, ``key`` and ``value`` ``[1, key heads, T, D]``, all of one dtype. Returns
    ``[1, T, heads, D]`` of that dtype, and None in place of attention weights. ``cu_seq_lens_q`` ``[documents + 1]``
    (int32) holds the beginning of each document of the row, and the end of the last. With a mask, or without documents,
    this is transformers' ``sdpa``. With a ``sequence_share`` T is this rank's part of the row.

    Raises `ModelError` for a mask with a ``sequence_share``, and for a packed row without ``cu_seq_lens_q``.
    """
    if sequence_share is not None:
        if attention_mask is not None:
            raise ModelError("sequence_parallel_size: the model makes a mask of its part of a sequence; remove it")
        options = (dropout, scaling, sliding_window, cu_seq_lens_q, max_length_q)
        return _sequence_parallel(module, query, key, value, sequence_share.size, *options), None
    if attention_mask is None and cu_seq_lens_q is None and _IS_PACKED.get():
        raise ModelError(f"model.attn_implementation: {type(module).__name__} is not passed cu_seq_lens_q; give sdpa")
    if attention_mask is not None or cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    if not dropout and _has_kernel(query, value):
        return _varlen_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    return _per_document(query, key, value, cu_seq_lens_q, dropout, scaling, sliding_window), None


def _sequence_parallel(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, *options: Any
) -> torch.Tensor:
    """Computes attention over whole documents, each of ``size`` ranks for a part of the heads (DeepSpeed Ulysses)."""
    query, key, value = gather_seq_scatter_heads((query, key, value), size)
    return gather_heads_scatter_seq(document_attention(module, query, key, value, None, *options)[0], size)


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Returns whether torch's kernel for documents takes heads of this type and width, on a GPU of this generation."""
    width = query.shape[-1]
    if query.device.type != "cuda" or query.dtype == torch.float32 or value.shape[-1] != width:
        return False
    return width <= 256 and width % 8 == 0 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    max_length: int | None,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    max_length = max_length or query.shape[2]
    gqa: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _accepts_enable_gqa(varlen_attn) else {}
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        cu_seq_q=cu_seq_lens,
        cu_seq_k=cu_seq_lens,
        max_q=max_length,
        max_k=max_length,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **gqa,
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


@functools.cache
def _accepts_enable_gqa(kernel: Callable[..., object]) -> bool:
    """Returns False for kernels of torch before 2.12, which take fewer key heads without the keyword."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def _per_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    if query.is_cuda and query.dtype == torch.float32:
        # torch's kernels without a table of scores take as many key heads as query heads in fp32
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    lengths = _document_lengths(cu_seq_lens)
    # split and cat: the gradient of a slice would be as long as the row, once for every document
    parts = zip(*(torch.split(part, lengths, dim=2) for part in (query, key, value)), strict=True)
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    outs = []
    for q, k, v in parts:
        if window and q.shape[2] > window:
            outs += _in_sliding_window(q, k, v, window, options)
        else:
            outs.append(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **options))
    return torch.cat([out.transpose(1, 2) for out in outs], dim=1)


def _document_lengths(cu_seq_lens: torch.Tensor) -> list[int]:
    """Returns the documents' lengths, cached by tensor: all layers of a pass have the same, and one of them syncs."""
    version, lengths = _lengths.get(cu_seq_lens, (-1, []))
    if version != cu_seq_lens._version:
        lengths = cu_seq_lens.diff().tolist()
        _lengths[cu_seq_lens] = cu_seq_lens._version, lengths
    return lengths


def _in_sliding_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, options: dict[str, Any]
) -> list[torch.Tensor]:
    """Attends from each token to itself and the ``window - 1`` before it, a block of queries at a time."""
    length, size = query.shape[2], max(window, _MIN_QUERY_BLOCK)
    outs = []
    for start in range(0, length, size):
        end, first = min(start + size, length), max(0, start - window + 1)
        rows, columns = torch.arange(start, end, device=query.device), torch.arange(first, end, device=query.device)
        distance = rows[:, None] - columns
        mask = (distance >= 0) & (distance < window)
        q, k, v = query[:, :, start:end], key[:, :, first:end], value[:, :, first:end]
        outs.append(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options))
    return outs
