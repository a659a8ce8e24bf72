"""Rounding noise: how far rounding alone moves what a model computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def rounding_noise(module: nn.Module) -> Iterator[None]:
    """Moves each number that an innermost layer of ``module`` returns by one in its last digit, up or down.

    The noise is the same at every call and on all ranks; no random generator of theirs is touched.
    """
    layers = [part for part in module.modules() if next(part.children(), None) is None]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(_add_noise))
        yield


def _add_noise(layer: nn.Module, args: object, output: object) -> object:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    generator = torch.Generator(output.device).manual_seed(0)
    signs = torch.randint(0, 2, output.shape, generator=generator, device=output.device) * 2 - 1
    return output * (1 + signs.to(output.dtype) * torch.finfo(output.dtype).eps)
