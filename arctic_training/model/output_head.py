"""How a causal model of transformers goes from hidden states to logits, found out by watching it do so once."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from arctic_training.loss.cross_entropy import LogitMap


@dataclass(frozen=True)
class OutputHead:
    """A model whose logits are ``map(head(scale * backbone(...)))``."""

    backbone: nn.Module
    head: nn.Linear
    map: LogitMap
    scale: float
    """What hidden states are multiplied by before the head."""
    added: Mapping[str, Any]
    """What the model tells its backbone beside what it was told itself."""


_known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def output_head(model: Any) -> OutputHead | None:
    """The head of ``model`` (a causal language model), or None when its logits come about in another way.

    Backbone and head are taken out for a moment and the model's own forward is run between stand-ins, so that neither a
    weight nor a random number is touched, and what a model does to its logits need not be known by its name.
    """
    known = _known.get(model, ...)
    if known is ... or (known is not None and model.get_output_embeddings() is not known.head):
        known = _known[model] = _watch(model)
    return known  # type: ignore[no-any-return]


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
    def __init__(self, like: nn.Linear, logits: Tensor) -> None:
        super().__init__()
        # taken out past the door at which ZeRO stage 3 waits to fetch what is asked for, and to fetch it ever after
        self.weight, self.bias = like._parameters.get("weight"), like._parameters.get("bias")
        self.logits = logits
        self.heard: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.heard = hidden
        return self.logits


def _watch(model: Any) -> OutputHead | None:
    prefix = getattr(model, "base_model_prefix", "")
    backbone = model._modules.get(prefix)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    name = next((name for name, module in model.named_children() if module is head), None)
    # a head that is more than its weight (an adapter, a quantised layer) must be called as it is
    if backbone is None or name is None or type(head) is not nn.Linear:
        return None
    if getattr(model.config, "output_router_logits", False):
        return None  # its loss has a part that comes from the backbone
    width = head.in_features
    hidden = torch.linspace(-1, 1, 2 * width, dtype=torch.float64).reshape(1, 2, width)
    logits = torch.linspace(-90, 90, 64, dtype=torch.float64).reshape(1, 2, 32)
    backbone_stand_in, head_stand_in = _Backbone(hidden), _Head(head, logits.clone())
    told: dict[str, Any] = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "position_ids": torch.arange(2)[None]}
    told |= {"use_cache": False, "cu_seq_lens_q": torch.tensor([0, 2], dtype=torch.int32)}
    with _swapped(model, {prefix: backbone_stand_in, name: head_stand_in}), torch.no_grad():
        try:
            given = type(model).forward(model, **told).logits
        except Exception:  # a model that wants more than this goes another way
            return None
    heard, passed = head_stand_in.heard, backbone_stand_in.told
    if heard is None or any(passed.get(key) is not value for key, value in told.items()):
        return None
    scale, mapped = _factor(hidden, heard), _logit_map(logits, given, model.config)
    added = {key: value for key, value in passed.items() if key not in told and value is not None}
    plain = all(isinstance(value, (bool, int, float, str)) for value in added.values())
    return OutputHead(backbone, head, mapped, scale, added) if scale and mapped and plain else None


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
