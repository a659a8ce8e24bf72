"""How far rounding alone moves what a model computes, found by rounding it another way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def rounded_apart(module: nn.Module) -> Iterator[None]:
    """Inside, each number that an innermost layer of ``module`` returns is off by one in its last digit, up or down.

    The same numbers at every call, on all processes; no random generator of theirs is touched.
    """
    layers = [part for part in module.modules() if next(part.children(), None) is None]
    handles = [layer.register_forward_hook(_move) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _move(layer: nn.Module, args: Any, out: Any) -> Any:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    draw = torch.Generator(out.device).manual_seed(0)
    signs = torch.randint(0, 2, out.shape, generator=draw, device=out.device) * 2 - 1
    return out * (1 + signs.to(out.dtype) * torch.finfo(out.dtype).eps)
