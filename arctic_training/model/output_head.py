"""The output head of a language model: how its forward makes logits and a loss of hidden states.

Found by running that forward once between stand-ins, so that no model is known by its name.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.loss.output_layer import PLAIN, LogitMap
from arctic_training.model.transformers_internals import accepts, calls_loss_function

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class OutputHead:
    """Output layer that makes logits of hidden states, and the loss that the model's own forward computes."""

    backbone: nn.Module | None
    """The module that the model's own forward calls for hidden states; None where it calls no module that is known."""
    head: nn.Module | None
    map: LogitMap | None
    """Logits are ``map(head(hidden))``, where ``hidden`` is what the backbone returns, or a multiple of it; None for a
    model that computes them otherwise."""
    calls_loss: bool
    """Whether the model's own forward, when given labels, computes their loss by its ``loss_function``."""
    adds_loss_of_logits: bool = False
    """Whether it adds a term to that loss that depends on the logits of all tokens."""
    bias: str | None = None
    """The name of the model's buffer, ``[1, vocabulary]``, that it adds to the outputs of ``head``."""


_cache: WeakKeyDictionary[nn.Module, OutputHead] = WeakKeyDictionary()


def output_head(model: "PreTrainedModel") -> OutputHead:
    """Returns the head of ``model`` (a language model), found once and cached.

    The model's own forward runs with stand-ins in place of backbone and head, so that neither a weight nor a random
    number is touched.
    """
    head = _cache.get(model)
    if head is None or (head.head is not None and model.get_output_embeddings() is not head.head):
        find = _find_decoder_head if is_encoder_decoder(model) else _find_head
        head = _cache[model] = find(model)
    return head


@contextmanager
def without_cross_entropy(
    model: "PreTrainedModel", device: torch.device
) -> Iterator[Callable[[object], Tensor | None]]:
    """Replaces the cross-entropy that the forward of ``model`` computes for labels by 0.

    Yields a function of the output of that forward: the scalar ``[]`` that it added to the 0, or None.
    """
    zeros: list[Tensor] = []

    def zero(*args: object, **kwargs: object) -> Tensor:
        zeros.append(torch.zeros((), dtype=torch.float32, device=device))
        return zeros[-1]

    def added_loss(output: object) -> Tensor | None:
        loss = getattr(output, "loss", None)
        if not isinstance(loss, Tensor) or (any(loss is one for one in zeros) and loss._version == 0):
            return None
        return loss

    with attribute_replaced(model, "_loss_function", zero):
        yield added_loss


@contextmanager
def attribute_replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """Replaces an attribute of ``module`` itself, such as its ``forward``; its class, and hooks, stay as they are."""
    before = {key: one for key, one in vars(module).items() if key == name}
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)
        vars(module).update(before)


class _BackboneOutput(dict[str, object]):
    """The output of a backbone that has hidden states, and None for every other field."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(last_hidden_state=hidden)
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __getitem__(self, key: object) -> Tensor | None:
        return self.last_hidden_state if key in (0, "last_hidden_state") else None


class _BackboneStandIn(nn.Module):
    """Records the arguments of its call and returns given hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden, self.received = hidden, dict[str, object]()

    def forward(self, *args: object, **kwargs: object) -> _BackboneOutput:
        self.received = kwargs | ({"input_ids": args[0]} if args else {})
        return _BackboneOutput(self.hidden)


class _HeadStandIn(nn.Module):
    """Records the hidden states of its call and returns given logits."""

    def __init__(self, like: nn.Module, logits: Tensor) -> None:
        super().__init__()
        # from _parameters: an attribute lookup would make ZeRO stage 3 gather the weight, now and ever after
        self.weight, self.bias = like._parameters.get("weight"), like._parameters.get("bias")
        self.logits = logits
        self.received: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.received = hidden
        return self.logits


def _find_head(model: "PreTrainedModel") -> OutputHead:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    name = next((name for name, module in model.named_children() if module is head), None)
    if head is None or name is None:
        return OutputHead(model._modules.get(model.base_model_prefix), None, None, calls_loss_function(model))
    heads = (_find_head_on(model, path, name) for path in _backbone_paths(model))
    unknown = OutputHead(None, head, None, calls_loss_function(model))
    return next((one for one in heads if one.backbone is not None), unknown)


def _backbone_paths(model: "PreTrainedModel") -> list[str]:
    """Returns the names of the modules that the forward of a decoder may call: its base model, or a decoder in that."""
    base = model._modules.get(model.base_model_prefix)
    paths = [model.base_model_prefix, f"{model.base_model_prefix}.decoder"]
    return [] if base is None else paths[: 1 + isinstance(base._modules.get("decoder"), nn.Module)]


def _find_head_on(model: "PreTrainedModel", path: str, name: str) -> OutputHead:
    """Returns the head ``name`` of a model with its backbone at ``path``, or without a backbone if none is called."""
    backbone, head = model.get_submodule(path), model._modules[name]
    assert head is not None
    calls_loss = calls_loss_function(model)
    width = int(getattr(head, "in_features", 0)) or model.config.get_text_config().hidden_size
    hidden = torch.linspace(-1, 1, 2 * width, dtype=torch.float64).reshape(1, 2, width)
    logits = torch.linspace(-90, 90, 64, dtype=torch.float64).reshape(1, 2, 32)
    backbone_stand_in, head_stand_in = _BackboneStandIn(hidden), _HeadStandIn(head, logits.clone())
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "position_ids": torch.arange(2)[None]}
    inputs |= {"use_cache": False, "cu_seq_lens_q": torch.tensor([0, 2], dtype=torch.int32)}
    extra_kwargs: dict[str, Any] = {"labels": torch.zeros(1, 2, dtype=torch.long)} if calls_loss else {}
    if accepts(model, "output_router_logits"):
        extra_kwargs["output_router_logits"] = False  # the stand-in routes nothing
    with _modules_replaced(model, {path: backbone_stand_in, name: head_stand_in}), torch.no_grad():
        try:
            with without_cross_entropy(model, torch.device("cpu")) as added_loss:
                output = type(model).forward(model, **inputs, **extra_kwargs)
                adds_loss, final_logits = added_loss(output) is not None, output.logits
        except Exception:  # a model that needs more than these inputs computes its logits otherwise
            return OutputHead(backbone if backbone_stand_in.received else None, head, None, calls_loss)
    received, passed = head_stand_in.received, backbone_stand_in.received
    if not passed:
        return OutputHead(None, head, None, calls_loss, adds_loss)
    if received is None or any(passed.get(key) is not value for key, value in inputs.items()):
        return OutputHead(backbone, head, None, calls_loss, adds_loss)
    logit_map = _logit_map(logits, final_logits, model.config) if _factor(hidden, received) else None
    return OutputHead(backbone, head, logit_map, calls_loss, adds_loss)


def _find_decoder_head(model: "PreTrainedModel") -> OutputHead:
    """Returns the head of an encoder-decoder, whose decoder takes the place of a backbone."""
    decoder, head, calls_loss = model.get_decoder(), model.get_output_embeddings(), calls_loss_function(model)
    names = {module: name for name, module in model.named_modules()}
    plain = OutputHead(decoder, head, None, calls_loss)
    if type(head) is not nn.Linear or head not in names or decoder not in names:
        return plain
    width, vocabulary = head.in_features, head.out_features
    hidden = torch.linspace(-1, 1, 2 * width, dtype=torch.float64).reshape(1, 2, width)
    logits = torch.linspace(-90, 90, 2 * vocabulary, dtype=torch.float64).reshape(1, 2, vocabulary)
    decoder_stand_in, head_stand_in = _BackboneStandIn(hidden), _HeadStandIn(head, logits.clone())
    inputs, encoded = torch.zeros(1, 2, dtype=torch.long), (torch.zeros(1, 1, width, dtype=torch.float64),)
    with _modules_replaced(model, {names[decoder]: decoder_stand_in, names[head]: head_stand_in}), torch.no_grad():
        try:
            output = type(model).forward(model, decoder_input_ids=inputs, encoder_outputs=encoded, use_cache=False)
            final_logits = output.logits
        except Exception:  # a model that needs more than these inputs computes its logits otherwise
            return plain
    received = head_stand_in.received
    if received is None or decoder_stand_in.received.get("input_ids") is not inputs or not _factor(hidden, received):
        return plain
    for name, bias in dict(model.named_buffers(recurse=False)).items():
        fits = head._parameters.get("bias") is None and bias.shape == (1, vocabulary)
        if fits and _factor(logits, final_logits - bias) == 1:
            return replace(plain, map=PLAIN, bias=name)
    return replace(plain, map=_logit_map(logits, final_logits, model.config))


@contextmanager
def _modules_replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replaces modules by their names, which may be dotted."""
    owners = {name: model.get_submodule(name.rpartition(".")[0])._modules for name in modules}
    originals = {name: owners[name][name.rpartition(".")[2]] for name in modules}
    for name, module in modules.items():
        owners[name][name.rpartition(".")[2]] = module
    try:
        yield
    finally:
        for name, original in originals.items():
            owners[name][name.rpartition(".")[2]] = original


def _factor(before: Tensor, after: Tensor) -> float | None:
    """Returns the number that ``before`` was multiplied by to become ``after``, or None where it was something else."""
    if before.shape != after.shape:
        return None
    # a model may have cast to the type of its weights
    tolerance = max(torch.finfo(after.dtype).eps, 1e-7) * 2
    factor = float(after.double().flatten()[-1] / before.flatten()[-1])
    if abs(factor - 1) <= tolerance:
        factor = 1.0
    fits = torch.allclose(after.double(), before * factor, rtol=tolerance, atol=tolerance * abs(factor))
    return factor if factor and fits else None


def _logit_map(before: Tensor, after: Tensor, config: "PreTrainedConfig") -> LogitMap | None:
    """Returns the scale and soft cap that take ``before`` to ``after``, or None where it was something else."""
    factor = _factor(before, after)
    if factor is not None:
        return LogitMap(factor)
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    uncapped = after.double().abs() < 0.5 * (cap or 0)
    if not cap or before.shape != after.shape or not uncapped.any():
        return None
    # the cap is inverted where it is not flat yet, which gives the factor of the logits before it
    inner = cap * torch.atanh(after.double()[uncapped] / cap)
    factor = float(inner[-1] / before[uncapped][-1])
    factor = 1.0 if abs(factor - 1) < 1e-5 else factor
    fits = torch.allclose(after.double(), cap * torch.tanh(before * factor / cap), rtol=1e-5, atol=1e-5)
    return LogitMap(factor, float(cap)) if fits else None
