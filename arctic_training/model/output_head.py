"""How a causal model of transformers goes from hidden states to logits and to its loss, found by watching it once."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from arctic_training.loss.cross_entropy import LogitMap


@dataclass(frozen=True)
class OutputHead:
    """What is known of the way from hidden states to logits, and to the loss that the model computes itself."""

    backbone: nn.Module | None
    head: nn.Module | None
    map: LogitMap | None
    """Logits are ``map(head(hidden))``, the hidden states being those of the backbone, or a multiple of them; None
    where they come about in another way."""
    calls_loss: bool
    """Whether the model's own forward, where labels are passed, computes their loss by its ``loss_function``."""
    adds_of_logits: bool = False
    """Whether it adds something to that loss which depends on the logits of all tokens."""


_known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def output_head(model: Any) -> OutputHead:
    """Returns the head of ``model`` (a causal language model).

    Backbone and head are taken out for a moment and the model's own forward is run between stand-ins, so that neither a
    weight nor a random number is touched, and what a model does to its logits need not be known by its name.
    """
    known = _known.get(model)
    if known is None or (known.head is not None and model.get_output_embeddings() is not known.head):
        known = _known[model] = _watch(model)
    return known


@contextmanager
def without_cross_entropy(model: Any, device: torch.device) -> Iterator[Callable[[Any], Tensor | None]]:
    """Puts 0 in place of the cross-entropy that the forward of ``model`` computes for labels.

    Yields a function that takes what the forward has returned to what it added to the 0, or to None.
    """
    before = model.__dict__.get("_loss_function")
    zeros: list[Tensor] = []

    def zero(*args: Any, **kwargs: Any) -> Tensor:
        zeros.append(torch.zeros((), dtype=torch.float32, device=device))
        return zeros[-1]

    def added(out: Any) -> Tensor | None:
        loss = getattr(out, "loss", None)
        if not isinstance(loss, Tensor) or (any(loss is one for one in zeros) and loss._version == 0):
            return None
        return loss

    model._loss_function = zero
    try:
        yield added
    finally:
        if before is None:
            del model._loss_function
        else:
            model._loss_function = before


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the forward of ``model`` knows a keyword of that name."""
    parameters = inspect.signature(type(model).forward).parameters
    return name in parameters


class _Output(dict[str, Any]):
    """What a backbone returns, as far as any model asks: hidden states, and None for the rest."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(last_hidden_state=hidden)
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key in (0, "last_hidden_state") else None


class _Backbone(nn.Module):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden, self.told = hidden, dict[str, Any]()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.told = kwargs | ({"input_ids": args[0]} if args else {})
        return _Output(self.hidden)


class _Head(nn.Module):
    def __init__(self, like: Any, logits: Tensor) -> None:
        super().__init__()
        # taken out past the door at which ZeRO stage 3 waits to fetch what is asked for, and to fetch it ever after
        self.weight, self.bias = like._parameters.get("weight"), like._parameters.get("bias")
        self.logits = logits
        self.heard: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.heard = hidden
        return self.logits


def _watch(model: Any) -> OutputHead:
    prefix = getattr(model, "base_model_prefix", "")
    backbone = model._modules.get(prefix)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    name = next((name for name, module in model.named_children() if module is head), None)
    calls_loss = "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names
    if backbone is None or name is None:
        return OutputHead(backbone, None, None, calls_loss)
    width = int(getattr(head, "in_features", 0)) or model.config.get_text_config().hidden_size
    hidden = torch.linspace(-1, 1, 2 * width, dtype=torch.float64).reshape(1, 2, width)
    logits = torch.linspace(-90, 90, 64, dtype=torch.float64).reshape(1, 2, 32)
    backbone_stand_in, head_stand_in = _Backbone(hidden), _Head(head, logits.clone())
    told: dict[str, Any] = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "position_ids": torch.arange(2)[None]}
    told |= {"use_cache": False, "cu_seq_lens_q": torch.tensor([0, 2], dtype=torch.int32)}
    more: dict[str, Any] = {"labels": torch.zeros(1, 2, dtype=torch.long)} if calls_loss else {}
    if accepts(model, "output_router_logits"):
        more["output_router_logits"] = False  # the stand-in routes nothing
    with _swapped(model, {prefix: backbone_stand_in, name: head_stand_in}), torch.no_grad():
        try:
            with without_cross_entropy(model, torch.device("cpu")) as added:
                out = type(model).forward(model, **told, **more)
                of_logits, given = added(out) is not None, out.logits
        except Exception:  # a model that wants more than this goes another way
            return OutputHead(backbone, head, None, calls_loss)
    heard, passed = head_stand_in.heard, backbone_stand_in.told
    if heard is None or any(passed.get(key) is not value for key, value in told.items()):
        return OutputHead(backbone, head, None, calls_loss, of_logits)
    mapped = _logit_map(logits, given, model.config) if _factor(hidden, heard) else None
    return OutputHead(backbone, head, mapped, calls_loss, of_logits)


@contextmanager
def _swapped(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    kept = {name: model._modules[name] for name in modules}
    model._modules.update(modules)
    try:
        yield
    finally:
        model._modules.update(kept)


def _factor(before: Tensor, after: Tensor) -> float | None:
    """The number that ``before`` was multiplied by to become ``after``; None when it was something else."""
    if before.shape != after.shape:
        return None
    # a model may have cast to the type of its weights
    tolerance = max(torch.finfo(after.dtype).eps, 1e-7) * 2
    factor = float(after.double().flatten()[-1] / before.flatten()[-1])
    if abs(factor - 1) <= tolerance:
        factor = 1.0
    fits = torch.allclose(after.double(), before * factor, rtol=tolerance, atol=tolerance * abs(factor))
    return factor if factor and fits else None


def _logit_map(before: Tensor, after: Tensor, config: Any) -> LogitMap | None:
    factor = _factor(before, after)
    if factor is not None:
        return LogitMap(factor)
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    linear = after.double().abs() < 0.5 * (cap or 0)
    if not cap or before.shape != after.shape or not linear.any():
        return None
    # the cap is undone where it is not flat yet, which tells what the logits were multiplied by before it
    inner = cap * torch.atanh(after.double()[linear] / cap)
    factor = float(inner[-1] / before[linear][-1])
    factor = 1.0 if abs(factor - 1) < 1e-5 else factor
    fits = torch.allclose(after.double(), cap * torch.tanh(before * factor / cap), rtol=1e-5, atol=1e-5)
    return LogitMap(factor, float(cap)) if fits else None
