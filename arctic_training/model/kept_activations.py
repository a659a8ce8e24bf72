"""Counts what a model keeps for its gradient, by a forward pass on tensors without values."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_training.errors.types import ModelError
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.model.attention import one_document_per_row
from arctic_training.model.transforms.activation_checkpointing import is_product
from arctic_training.model.transforms.compile import repeated_layers
from arctic_training.model.transforms.tiled_mlp import tileable_mlps

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
    mlp: float = 0.0
    """Of what one of the layers keeps, the part inside its MLP; 0 where that cannot be tiled."""
    products: float = 0.0
    """What selective checkpointing keeps of a layer: the outputs of linear layers and of attention."""
    mlp_products: float = 0.0
    """Of these, those inside the MLP."""


@dataclass(frozen=True)
class Recomputation:
    """Parts that are computed again for the gradient, in the place of being kept."""

    layers: bool = False
    selective: bool = False
    """Of the layers only what is no product."""
    offloads: bool = False
    """The inputs of the layers are kept in main memory."""
    tile: int = 0
    """Tokens of an MLP that are computed at a time; 0: all."""

    def kept(self, size: Kept, tokens: int) -> int:
        """Returns the bytes on the device of a micro-batch of ``tokens``, at the most at once."""
        inside = size.layers * (tokens * (size.layer - self._mlp(size)))
        if self.layers:
            each = (0.0 if self.offloads else size.layer_input) + self._products(size)
            inside = size.layers * tokens * each + self.computed_again(size, tokens)
        elif self.tile:
            inside += size.mlp * min(self.tile, tokens)
        return int(tokens * size.outside + inside)

    def computed_again(self, size: Kept, tokens: int) -> float:
        """Returns the bytes that one layer takes when it is computed again, beside what was kept of it."""
        of_tile = size.mlp * min(self.tile, tokens) if self.tile else 0.0
        rest = size.layer - self._mlp(size) - self._products(size) + size.layer_input * self.offloads
        return tokens * rest + of_tile

    def in_main_memory(self, size: Kept, tokens: int) -> int:
        """Returns the bytes in main memory of a micro-batch of ``tokens``."""
        return int(size.layers * size.layer_input * tokens) if self.layers and self.offloads else 0

    def _mlp(self, size: Kept) -> float:
        return size.mlp if self.tile else 0.0

    def _products(self, size: Kept) -> float:
        if not self.selective:
            return 0.0
        return size.products - (size.mlp_products if self.tile else 0.0)


def count_kept(model: nn.Module) -> Kept | None:
    """Returns what the backbone of a model of transformers keeps, with parameters on any device, such as meta.

    None for a model that cannot be run without values, such as one whose experts are chosen by them.
    """
    adapted: nn.Module = getattr(model, "get_base_model", lambda: model)()
    backbone: nn.Module = getattr(adapted, "base_model", adapted)
    try:
        layers = repeated_layers(backbone)
        with FakeTensorMode(), one_document_per_row(), torch.enable_grad(), contextlib.redirect_stderr(None):
            return _Count(backbone, layers).run()
    except Exception:  # no stack of layers, or whatever a forward of another library raises
        return None


class _Count:
    """Bytes that a forward pass of ``backbone`` keeps, by where; inside a `FakeTensorMode`."""

    def __init__(self, backbone: nn.Module, layers: list[nn.Module]) -> None:
        self.backbone, self.layers = backbone, layers
        try:
            self.mlps = tileable_mlps(backbone)
        except ModelError:
            self.mlps = []
        self.depth = 0  # of layers that are being computed
        self.mlp_depth = 0
        self.bytes = {"outside": 0, "layer": 0, "mlp": 0, "products": 0, "mlp_products": 0}
        self.width = 0
        self.seen: dict[int, Tensor] = {}  # alive, else another tensor could get the address of one that was counted
        self.mlp_inputs: set[int] = set()

    def run(self) -> Kept:
        values = {
            name: torch.empty(one.shape, dtype=one.dtype, device="cpu", requires_grad=one.requires_grad)
            for name, one in self.backbone.named_parameters()
        }
        values |= {name: torch.empty(one.shape, dtype=one.dtype) for name, one in self.backbone.named_buffers()}
        self.seen |= {_place(one): one for one in values.values()}
        ids = torch.zeros(1, _LENGTH, dtype=torch.long)
        inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if is_encoder_decoder(self.backbone) else {})
        with self._hooks(), saved_tensors_hooks(self._pack, lambda tensor: tensor), _ProductCounter(self):
            functional_call(self.backbone, values, kwargs={**inputs, "use_cache": False})
        each = {name: size / _LENGTH / len(self.layers) for name, size in self.bytes.items()}
        each |= {"outside": self.bytes["outside"] / _LENGTH, "layer": each["layer"] + each["mlp"]}
        return Kept(**each, layer_input=self.width / _LENGTH, layers=len(self.layers))

    def add_product(self, size: int) -> None:
        """Counts the output of an operation that is a product."""
        if self.depth:
            self.bytes["products"] += size
            self.bytes["mlp_products"] += size if self.mlp_depth else 0

    def _pack(self, tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in self.seen:
            self.seen[place] = tensor
            in_mlp = self.mlp_depth and place not in self.mlp_inputs  # its input is kept by the tiles too
            where = "outside" if not self.depth else "mlp" if in_mlp else "layer"
            self.bytes[where] += tensor.untyped_storage().nbytes()
        return tensor

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in self.layers]
        handles += [layer.register_forward_hook(self._leave) for layer in self.layers]
        handles += [mlp.register_forward_pre_hook(self._enter_mlp) for mlp in self.mlps]
        handles += [mlp.register_forward_hook(self._leave_mlp) for mlp in self.mlps]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.depth += 1
        state = args[0] if args else kwargs.get("hidden_states")
        self.width = state.numel() * state.element_size() if isinstance(state, Tensor) else self.width

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self.depth -= 1

    def _enter_mlp(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.mlp_depth += 1
        self.mlp_inputs.add(_place(args[0]))

    def _leave_mlp(self, module: nn.Module, args: object, output: object) -> None:
        self.mlp_depth -= 1


class _ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, count: _Count) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        if is_product(func):
            parts = output if isinstance(output, tuple) else (output,)
            self.count.add_product(sum(one.untyped_storage().nbytes() for one in parts if isinstance(one, Tensor)))
        return output


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
