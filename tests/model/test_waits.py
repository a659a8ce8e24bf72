"""A forward pass asks the device for nothing that the host knows, and makes no mask that attention does not need."""

import inspect
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_training.data.batching.collate import pack, pad
from arctic_training.loss.targets import copy_target_count, count_targets
from arctic_training.model import attention
from arctic_training.model.token_losses import token_losses
from tests.model.test_token_losses import build, gradients

WAITS = (
    "aten.item",
    "aten._local_scalar_dense",
    "aten.nonzero.default",
    "aten.is_nonzero",
    "aten.equal",
    "aten.unique",
)
"""Operations whose result the host needs before it goes on."""


class Waits(TorchDispatchMode):
    """Counts the operations at which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(WAITS):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def batch_of(place: Any, sizes: list[int], **options: Any) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    samples = [{"input_ids": (ids := draw.integers(3, 97, n).astype(np.int32)), "labels": ids} for n in sizes]
    batch: dict[str, Any] = place(samples, pad_token=0, **options)
    return batch


@pytest.mark.parametrize("place", [pack, pad])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_forward_and_backward_pass_waits_for_nothing(kind: str, place: Any) -> None:
    model, batch = build(kind), batch_of(place, [7, 12, 3], multiple=16)
    token_losses(model, batch, reduction="sum")  # the head is looked at once
    with Waits() as waits:
        token_losses(model, batch, reduction="sum").backward()
    assert not waits.counts


def test_the_waits_of_transformers_own_forward_are_seen() -> None:
    model, batch = build("llama"), batch_of(pad, [7, 12])
    del batch["attention_mask"]
    with Waits() as waits:
        model(**batch, use_cache=False)
    assert waits.counts


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_that_are_padded_make_no_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = attention.document_attention

    def watched(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(mask)
        return real(module, query, key, value, mask, *args, **kwargs)

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, batch = build(kind), batch_of(pad, [11, 6], multiple=16)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, attention.NAME, watched)
    actual = token_losses(model, batch, reduction="sum")
    assert seen and all(mask is None for mask in seen)
    alone = [token_losses(model, batch_of(pad, [11]), reduction="sum")]
    rest = {name: value[1:, :6] for name, value in batch.items()}
    alone.append(token_losses(model, rest, reduction="sum"))
    torch.testing.assert_close(actual, sum(alone), rtol=1e-6, atol=1e-5)
    for name, gradient in gradients(model, sum(alone)).items():
        torch.testing.assert_close(
            gradients(model, token_losses(model, batch, reduction="sum"))[name], gradient, rtol=1e-5, atol=1e-5
        )


def test_labels_that_change_on_a_device_are_counted_anew() -> None:
    """The meta device stands in for one that the host would have to wait for."""
    labels = torch.full((2, 5), 7)
    batch = {"labels": labels}
    moved = {"labels": labels.to("meta")}
    copy_target_count(batch, moved)
    assert count_targets(moved["labels"], shifted=False) == count_targets(labels, shifted=False) == 8
    # the labels of a decoder are at their own positions, so that the first one counts
    assert count_targets(moved["labels"], shifted=True) == count_targets(labels, shifted=True) == 10
    assert count_targets(moved["labels"].clone(), shifted=False) is None
    moved["labels"].fill_(-100)
    assert count_targets(moved["labels"], shifted=False) is None


def test_the_kernel_for_documents_is_called_as_this_torch_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keyword for fewer key heads came with torch 2.12; before, the kernel took them as they are."""
    from torch.nn.attention import varlen

    received: list[set[str]] = []

    def old(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, **kwargs: Any
    ) -> Any:
        received.append(set(kwargs))
        return query

    def signature(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        ...

    old.__signature__ = inspect.signature(signature)  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen, "varlen_attn", old)
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    ends = torch.tensor([0, 2, 6], dtype=torch.int32)
    attention._varlen_attention(query, key, key, ends, 4, None, None)
    assert received == [{"scale", "window_size"}]


def test_positions_are_searched_for_documents_where_nothing_else_tells_them() -> None:
    """Rows of several documents that only restarting positions tell apart, in transformers' own implementation."""
    model = build("llama")
    model.set_attn_implementation("sdpa")
    packed = batch_of(pack, [7, 12])
    row = {name: packed[name] for name in ("input_ids", "labels", "position_ids")}
    torch.testing.assert_close(token_losses(model, row), token_losses(model, packed), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        token_losses(model, row)[:6], token_losses(model, batch_of(pack, [7])), rtol=1e-5, atol=1e-5
    )
