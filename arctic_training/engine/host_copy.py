"""Copies of nested values in host memory, which later steps do not change."""

from collections.abc import Mapping
from typing import TypeVar, cast

import torch

T = TypeVar("T")


def host_copy(value: T) -> T:
    """Returns a copy of nested mappings, lists and tuples with a copy of every tensor in host memory.

    Mappings become plain dicts. Tensors that share memory are copied one by one; gradients are not kept.
    """
    copy: object = value
    if isinstance(value, torch.Tensor):
        copy = value.detach().to("cpu", copy=True)
    elif isinstance(value, Mapping):
        copy = {key: host_copy(one) for key, one in value.items()}
    elif isinstance(value, (list, tuple)):
        copy = type(value)(host_copy(one) for one in value)
    return cast(T, copy)
