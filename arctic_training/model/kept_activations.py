"""What a model keeps for its gradient, counted by a forward pass on tensors without values."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.model.attention import one_document_per_row
from arctic_training.model.transforms.builtin import repeated_layers

_LENGTH = 64
"""Tokens of the row that is counted; kernels for attention keep nothing that grows with its square."""


@dataclass(frozen=True)
class Kept:
    """Bytes for each token of a micro-batch, without the weights themselves."""

    outside: float
    """Outside the layers, such as in embeddings."""
    layer: float
    """In one of the layers."""
    layer_input: float
    """Of the hidden state that enters a layer."""
    layers: int
    """Number of the layers."""

    def bytes(self, tokens: int, *, checkpointed: bool = False) -> int:
        """Returns the bytes of ``tokens``; ``checkpointed``: the inputs of the layers, and what one of them keeps."""
        inside = self.layers * self.layer
        if checkpointed:
            inside = self.layers * self.layer_input + self.layer
        return int(tokens * (self.outside + inside))


def count_kept(model: nn.Module) -> Kept | None:
    """Returns what the backbone of a model of transformers keeps, with parameters on any device, such as meta.

    None for a model that cannot be run without values, such as one whose experts are chosen by them.
    """
    adapted: nn.Module = getattr(model, "get_base_model", lambda: model)()
    backbone: nn.Module = getattr(adapted, "base_model", adapted)
    try:
        layers = repeated_layers(backbone)
        with FakeTensorMode(), one_document_per_row(), torch.enable_grad(), contextlib.redirect_stderr(None):
            return _count(backbone, layers)
    except Exception:  # no stack of layers, or whatever a forward of another library raises
        return None


def _count(backbone: nn.Module, layers: list[nn.Module]) -> Kept:
    """Runs ``backbone`` on a row inside the current `FakeTensorMode`."""
    values = {
        name: torch.empty(one.shape, dtype=one.dtype, device="cpu", requires_grad=one.requires_grad)
        for name, one in backbone.named_parameters()
    }
    values |= {name: torch.empty(one.shape, dtype=one.dtype) for name, one in backbone.named_buffers()}
    weights = {one.untyped_storage()._cdata for one in values.values()}
    sizes, inside, depth, width = dict[int, int](), 0, 0, 0
    alive: list[Tensor] = []  # else another tensor could get the address of one that was counted

    def pack(tensor: Tensor) -> Tensor:
        nonlocal inside
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in sizes:
            sizes[storage._cdata] = storage.nbytes()
            inside += storage.nbytes() if depth else 0
            alive.append(tensor)
        return tensor

    def enter(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        nonlocal depth, width
        depth += 1
        state = args[0] if args else kwargs.get("hidden_states")
        width = state.numel() * state.element_size() if isinstance(state, Tensor) else width

    def leave(module: nn.Module, args: object, output: object) -> None:
        nonlocal depth
        depth -= 1

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    ids = torch.zeros(1, _LENGTH, dtype=torch.long)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if is_encoder_decoder(backbone) else {})
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            functional_call(backbone, values, kwargs={**inputs, "use_cache": False})
    finally:
        for handle in handles:
            handle.remove()
    outside = sum(sizes.values()) - inside
    return Kept(outside / _LENGTH, inside / len(layers) / _LENGTH, width / _LENGTH, len(layers))
