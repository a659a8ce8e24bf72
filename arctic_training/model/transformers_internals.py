"""Reads of transformers what it has no documented interface for: source text, signatures and private attributes.

``tests/model/test_transformers_internals.py`` names each of them, so that a release that changes one fails by its name.
"""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


def model_class_of(
    auto_class: type["_BaseAutoModelClass"], config: "PreTrainedConfig"
) -> type["PreTrainedModel"] | None:
    """Returns the class that an auto class makes for ``config``, or None where it has none (``_model_mapping``)."""
    mapping = auto_class._model_mapping
    if type(config) not in mapping:
        return None
    classes = mapping[type(config)]
    model_class: type[PreTrainedModel] = classes[0] if isinstance(classes, (tuple, list)) else classes
    return model_class


def passes_attention_arguments(model_class: type["PreTrainedModel"]) -> bool:
    """Returns whether the layers of a model pass to the attention function where documents end.

    They do in models that transformers itself runs with flash attention, whose keyword arguments are the same, unless a
    layer drops ``**kwargs`` on the way.
    """
    backends = ("sdpa", "flash_attn", "attention_backend")
    return all(getattr(model_class, f"_supports_{name}", False) for name in backends) and forwards_kwargs(model_class)


def forwards_kwargs(model_class: type["PreTrainedModel"]) -> bool:
    """Returns whether every layer in the module of ``model_class`` calls its self-attention with ``**kwargs``."""
    return _forwards_kwargs(_source(model_class))


@functools.cache
def _forwards_kwargs(source: str) -> bool:
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    keywords = [(node.func.attr, {word.arg for word in node.keywords}) for node in calls]  # type: ignore[attr-defined]
    # the attention of the model itself is what a cache is for; of `**kwargs` the name is None
    own = (names for call, names in keywords if call.endswith(("attn", "attention")) and "cross" not in call)
    return all(None in names for names in own if "past_key_values" in names)


def passes_sliding_window(model_class: type["PreTrainedModel"]) -> bool:
    """Returns whether the layers pass their window to the attention function; some models put it into the mask only."""
    return re.search(r"\bsliding_window=(self\.|getattr)", _source(model_class)) is not None


def calls_loss_function(model: nn.Module) -> bool:
    """Returns whether the forward of ``model`` computes the loss of labels by its ``loss_function``."""
    return "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Returns the names of the parameters of the forward of ``model``, and of those of its bases, to which a forward
    with ``**kwargs`` passes them."""
    names = frozenset[str]()
    for forward in (vars(base)["forward"] for base in type(model).__mro__ if "forward" in vars(base)):
        own, passes_others = _parameters(forward)
        names |= own
        if not passes_others:
            break
    return names


@functools.cache
def _parameters(function: Callable[..., object]) -> tuple[frozenset[str], bool]:
    """Returns the names of the parameters of ``function``, and whether it has ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    return frozenset(parameters), any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def accepts(model: nn.Module, name: str) -> bool:
    """Returns whether the forward of ``model`` has a parameter ``name``."""
    return name in forward_parameters(model)


def converts_weights(model: "PreTrainedModel") -> bool:
    """Returns whether transformers makes other tensors of those in the files, so that shapes cannot be compared."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    quantized = getattr(model.config, "quantization_config", None)
    return bool(quantized or get_model_conversion_mapping(model, add_legacy=False))


def renamed_weights(model: "PreTrainedModel", names: Iterable[str]) -> list[str]:
    """Returns the names that transformers gives in ``model`` to weights of files, which have ``names`` there."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(model, add_legacy=False)
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    return [rename_source_key(name, renamings, converters)[0] for name in names]


def _source(model_class: type["PreTrainedModel"]) -> str:
    return inspect.getsource(inspect.getmodule(model_class) or model_class)
