"""MLPs that are computed for some tokens at a time, so that what they keep inside never exists for a whole sequence."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType

import torch
from pydantic import Field
from torch import Tensor, nn

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.engine.leaf_modules import gather_at_once
from arctic_training.errors.types import ModelError
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.model.transforms.compile import repeated_layers

_IN_TILE: ContextVar[bool] = ContextVar("in_tile", default=False)


class TiledMLPConfig(ComponentConfig):
    """The keys of `TiledMLP`."""

    tokens: int | None = Field(default=None, ge=1)
    """Tokens that are computed at a time; by default as many as a hidden state has elements."""


class TiledMLP(ModelTransform[TiledMLPConfig]):
    """Computes the MLPs for some tokens at a time, and again for the gradient."""

    name = "tiled_mlp"

    def __call__(self, model: nn.Module) -> nn.Module:
        """Raises `ModelError` for a model with a layer whose MLP cannot be computed so."""
        for mlp in tileable_mlps(model):
            tile(mlp, self.config.tokens)
        return model


@dataclass(frozen=True)
class Tiling:
    """Settings by which an MLP computes its tiles."""

    forward: Callable[[nn.Module, Tensor], Tensor]
    """Its own forward, unbound, so that a copy of the model computes with its own weights."""
    tokens: int | None


def tile(mlp: nn.Module, tokens: int | None = None) -> None:
    """Has ``mlp``, one of `tileable_mlps`, compute at most ``tokens`` tokens at a time, by default as many as its input
    is wide. With gradients, the activations inside are computed again in the backward pass.

    The tiles are parts of one graph, so that a parameter gets its gradient once, summed over them, and ZeRO reduces it
    once. (DeepSpeed's ``TiledMLP`` runs a backward pass for every tile. It computes no gradient at all of an MLP whose
    input needs none, and never reduces one where ``torch.chunk`` makes fewer tiles than it counts.)
    """
    assert isinstance(mlp.forward, MethodType)
    mlp.tiling = Tiling(mlp.forward.__func__, tokens)  # type: ignore[assignment]
    mlp.forward = MethodType(_uncompiled_forward(), mlp)
    gather_at_once(mlp)


def tiling_of(module: nn.Module) -> Tiling | None:
    """Returns how ``module`` is tiled; None where it is not."""
    return vars(module).get("tiling")


def is_in_tile() -> bool:
    """Returns whether a tile is being computed, for the first time or again."""
    return _IN_TILE.get()


def tileable_mlps(model: nn.Module) -> list[nn.Module]:
    """Returns the MLPs of ``model``: in its layers the modules that compute every token for itself, by linear layers,
    from one tensor. Raises `ModelError` where a layer has none, or sends its tokens to experts.
    """
    mlps = list(_outermost(model))
    for layer in repeated_layers(model):
        inside = list(layer.named_modules())
        experts = [type(one).__name__ for name, one in inside if "expert" in f"{name}.{type(one).__name__}".lower()]
        if experts:
            raise ModelError(
                f"tiled_mlp_compute: {type(layer).__name__} sends its tokens to experts ({experts[0]}), which are no "
                "MLP for all tokens; remove it"
            )
        modules = {one for _, one in inside}
        if not any(mlp in modules for mlp in mlps):
            raise ModelError(
                f"tiled_mlp_compute: {type(layer).__name__} has no module that computes its MLP alone, of one tensor; "
                "remove it"
            )
    return mlps


def input_width(mlp: nn.Module) -> int:
    """Returns the number of elements that an MLP takes of a token."""
    first = next(part for part in _parts(mlp) if _is_linear(part))
    width: int = first.in_features if isinstance(first, nn.Linear) else first.nx  # type: ignore[assignment]
    return width


def _outermost(module: nn.Module, name: str = "") -> Iterator[nn.Module]:
    """Yields the MLPs in ``module``, but none that is a part of another one."""
    if _is_mlp(module) and "attention" not in type(module).__name__.lower() and "attn" not in name:
        yield module
        return
    for child_name, child in module.named_children():
        yield from _outermost(child, child_name)


def _is_mlp(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    takes_one = [one.kind for one in parameters] == [inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if not takes_one or not isinstance(module.forward, MethodType):
        return False
    parts = list(_parts(module))
    linear = [part for part in parts if _is_linear(part)]
    return len(linear) > 1 and all(_is_position_wise(part) for part in parts)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that compute something; an adapter around a layer counts as that layer.

    A module that has parameters and also other modules computes something of its own.
    """
    for child in module.children():
        base = getattr(child, "base_layer", child)
        if next(base.children(), None) is None or next(base.parameters(recurse=False), None) is not None:
            yield base
        else:
            yield from _parts(base)


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _is_position_wise(module: nn.Module) -> bool:
    """Returns whether a module without others in it computes every token for itself, as its type says."""
    home, name = type(module).__module__, type(module).__name__
    is_norm = name.endswith(("LayerNorm", "RMSNorm"))
    activates = home.startswith(("torch.nn.modules.activation", "transformers.activations"))
    return _is_linear(module) or isinstance(module, (nn.Dropout, nn.Identity)) or is_norm or activates


@functools.cache
def _uncompiled_forward() -> Callable[[nn.Module, Tensor], Tensor]:
    """Returns `_tiled_forward` as a gap in compiled layers: the number of tiles depends on the length of a batch."""
    return torch.compiler.disable(_tiled_forward)  # type: ignore[no-any-return, no-untyped-call]


def _tiled_forward(mlp: nn.Module, hidden: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    tiling = tiling_of(mlp)
    assert tiling is not None
    width = hidden.shape[-1]
    # split and cat: the gradient of a slice would be as long as the row, once for every tile
    tiles = torch.split(hidden.reshape(1, -1, width), tiling.tokens or width, dim=1)
    if len(tiles) == 1:
        return tiling.forward(mlp, hidden)
    compute = functools.partial(_compute_tile, mlp, tiling)
    if torch.is_grad_enabled():
        outs = [checkpoint(compute, one, use_reentrant=False) for one in tiles]
    else:
        outs = [compute(one) for one in tiles]
    return torch.cat(outs, dim=1).reshape(*hidden.shape[:-1], -1)


def _compute_tile(mlp: nn.Module, tiling: Tiling, hidden: Tensor) -> Tensor:
    token = _IN_TILE.set(True)
    try:
        return tiling.forward(mlp, hidden)
    finally:
        _IN_TILE.reset(token)
