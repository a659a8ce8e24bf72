"""Saves the adapter of a PeftModel: as PEFT does, with its base where no other folder holds that, or merged.

All ranks call every function together; only rank 0 keeps what is gathered, and writes.
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from arctic_training.checkpoint.export import Read, Source, attempt, dry_run_weights, gatherable
from arctic_training.distributed import process_group
from arctic_training.engine.internals.parameters import full_shape
from arctic_training.engine.zero import gathered
from arctic_training.errors.types import RecipeError
from arctic_training.state import needs_numbers

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

T = TypeVar("T")

BASE = "base"
"""The folder beside an adapter that holds its base."""

_NOT_MERGEABLE = ("use_dora", "use_qalora", "lora_bias", "trainable_token_indices", "alora_invocation_tokens")
"""Options of LoRA that change more of a layer than its weight."""

_SUMS = {"MiCALinearVariant", "MiCAEmbeddingVariant", "MontecloraLinearVariant", "VeloraLinearVariant"}
"""Kinds of LoRA of PEFT that differ from plain LoRA in how they begin or train alone."""

_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
"""The modules that PEFT puts between a layer of the base and its weights."""


def base_changes(model: "PeftModel") -> tuple[str, ...]:
    """Returns how the base of ``model`` differs from the model that its name loads; empty if it does not."""
    return tuple(getattr(model, "base_changes", ()))


def save_adapter(model: "PeftModel", folder: Path, limit: int, *, final: Path, save: Callable[..., T]) -> T | None:
    """Writes the adapter, and where no name loads its base, passes that to ``save``, whose result is returned.

    ``save`` is `save_weights`, for files of up to ``limit`` bytes, or `stage_weights`. ``final`` is the path that
    ``folder`` will be renamed to. Raises OSError only after everything was gathered.
    """
    saves_base = bool(base_changes(model))
    with gathered(_saved_parameters(model)), _base_path(model, str(final.absolute() / BASE) if saves_base else None):
        failure = attempt(
            lambda: model.save_pretrained(
                folder, save_embedding_layers=_saves_embeddings(model), is_main_process=process_group.is_main()
            )
        )
    saved: T | None = None
    if saves_base:
        saved = save(plain_base(model), folder / BASE, limit, base_weights(model, merged=False))
    if failure:
        raise failure
    return saved


def dry_run_adapter(model: "PeftModel") -> None:
    """Checks by shapes that what PEFT would save can be loaded on the base, and holds everything that is trained.

    Writes nothing. Raises `RecipeError` if not.
    """
    import peft

    settings = model.peft_config[model.active_adapter]
    if base_changes(model):
        dry_run_weights(plain_base(model), base_weights(model, merged=False))
    try:
        with warnings.catch_warnings(action="ignore"):
            with gathered(_saved_parameters(model)):
                state = peft.get_peft_model_state_dict(model, save_embedding_layers=_saves_embeddings(model))
                state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
            loadable = copy.deepcopy(settings)
            _set_plain_init(loadable)
            loadable.inference_mode = True
            loaded = peft.PeftModel(plain_base(model), loadable)
            result = peft.set_peft_model_state_dict(loaded, state)
    except Exception as error:
        if needs_numbers(error):
            return  # a method whose first weights follow from those of the base
        raise RecipeError(
            f"checkpoint.type: huggingface: PEFT cannot load what it saves of this {_kind(model)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    names: dict[int, set[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        if one.requires_grad and not settings.is_prompt_learning:  # whose weights PEFT loads in another way
            names.setdefault(id(one), set()).add(name)
    missing = set(result.missing_keys)
    if lost := [min(one) for one in names.values() if one <= missing]:
        raise RecipeError(
            f"checkpoint.type: huggingface: PEFT does not save {len(lost)} of the weights that this {_kind(model)} "
            f"trains, among them {lost[0]}"
        )


def require_mergeable(model: "PeftModel") -> None:
    """Raises `RecipeError` when the adapter of ``model`` (a PeftModel) is more than a sum of weights."""
    if why := unmergeable(model):
        raise RecipeError(
            f"checkpoint.merge_adapter: only plain LoRA can be merged, and this has {why}; set it to false"
        )


def unmergeable(model: "PeftModel") -> str:
    """Returns what the adapter of ``model`` has beside a sum of weights; empty when it can be merged."""
    settings, base = model.peft_config[model.active_adapter], model.get_base_model()
    kind = _kind(model)
    why = "" if kind == "LORA" else f"{kind} is no sum of weights"
    why = why or ", ".join(name for name in _NOT_MERGEABLE if getattr(settings, name, None))
    kinds = {type(kind).__name__ for part in base.modules() for kind in getattr(part, "lora_variant", {}).values()}
    why = why or ", ".join(sorted(kinds - _SUMS))
    embeddings = [base.get_input_embeddings(), base.get_output_embeddings()]
    if not why and base.config.get_text_config().tie_word_embeddings:
        adapted = any(type(part).__module__.startswith("peft.") for part in embeddings)
        why = "embeddings that are also the output layer, of which it changes one" if adapted else ""
    return why


def plain_base(model: "PeftModel") -> "PreTrainedModel":
    """Returns the base of ``model`` without adapters, on the meta device: for its names and its config."""
    base = model.get_base_model()
    with torch.device("meta"):
        plain = type(base)._from_config(copy.deepcopy(base.config))
    if hasattr(base, "generation_config"):  # a classifier generates nothing
        plain.generation_config = copy.deepcopy(base.generation_config)
    return plain


def base_weights(
    model: "PeftModel", *, merged: bool, dtype: torch.dtype | None = None, read: Read = gathered
) -> dict[str, Source]:
    """Returns the weights of the base of ``model`` by its own names, with the adapter added to them if ``merged``.

    The sum is computed in fp32, and is in ``dtype``, as the other floating weights are; None: each in its own. ``read``
    makes parameters readable for as long as they are needed. The model is not changed; `require_mergeable` checks what
    can be merged. Raises `RecipeError` when a weight of the base is missing.
    """
    adapter, base = model.active_adapter, model.get_base_model()
    names = plain_base(model).state_dict()
    sources: dict[str, Source] = {}
    for name, module in base.named_modules() if merged else ():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            weight = getattr(module, "parameter_name", "weight")  # of experts, several in one module are adapted
            sources[_WRAPPERS.sub("", f"{name}.{weight}")] = _merged(module, weight, adapter, dtype, read)
    for name, tensor in base.state_dict(keep_vars=True).items():
        if merged:
            if ".original_module." in name:
                continue
            name = name.replace(f".modules_to_save.{adapter}.", ".")
        if (plain := _WRAPPERS.sub("", name)) in names:
            sources.setdefault(plain, gatherable(tensor, dtype, read))
    if lost := [name for name in names if name not in sources]:
        raise RecipeError(
            f"checkpoint.type: huggingface: {_kind(model)} does not keep {lost[0]} of its base, which differs "
            f"from model.name_or_path ({', '.join(base_changes(model))}); use another method, or type deepspeed"
        )
    return sources


def _merged(layer: "BaseTunerLayer", name: str, adapter: str, dtype: torch.dtype | None, read: Read) -> Source:
    def gather() -> torch.Tensor:
        own = {id(one) for one in layer.get_base_layer().parameters()}
        with read(layer.parameters()), _in_fp32([one for one in layer.parameters() if id(one) not in own]):
            weight: torch.Tensor = getattr(layer.get_base_layer(), name)
            delta: torch.Tensor = layer.get_delta_weight(adapter)
            # in less than fp32, what is below the last digit of a weight would be lost twice
            return (weight.float() + delta.float()).to(dtype or weight.dtype)

    weight = getattr(layer.get_base_layer(), name)
    return Source(torch.empty(full_shape(weight), dtype=dtype or weight.dtype, device="meta"), gather)


@contextmanager
def _in_fp32(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Has the parameters in fp32 inside the block, without gradients."""
    with torch.no_grad():
        held = [(one, one.data) for one in parameters]
        try:
            for one, data in held:
                one.data = data.float()
            yield
        finally:
            for one, data in held:
                one.data = data


def _kind(model: "PeftModel") -> str:
    kind = model.peft_config[model.active_adapter].peft_type
    return str(getattr(kind, "value", kind))


def _saves_embeddings(model: "PeftModel") -> bool:
    """Returns whether the adapter has the embeddings, which PEFT saves when they have more rows than the base's."""
    return "vocabulary" in base_changes(model)


def _saved_parameters(model: "PeftModel") -> list[nn.Parameter]:
    """Returns what may be saved with the adapter: trained and added parameters, and resized embeddings."""
    prefix = getattr(model.base_model, "prefix", None)
    parameters = {
        id(one): one for name, one in model.named_parameters() if one.requires_grad or (prefix and prefix in name)
    }
    if _saves_embeddings(model):
        base = model.get_base_model()
        for part in filter(None, (base.get_input_embeddings(), base.get_output_embeddings())):
            parameters |= {id(one): one for one in part.parameters()}
    return list(parameters.values())


@contextmanager
def _base_path(model: "PeftModel", base: str | None) -> Iterator[None]:
    """Has the adapter's config name ``base`` as its base inside the block; None: the one it names already."""
    settings = model.peft_config[model.active_adapter]
    before = vars(settings).copy()
    if base is not None:
        settings.base_model_name_or_path = base
        _set_plain_init(settings)
    try:
        yield
    finally:
        vars(settings).update(before)


def _set_plain_init(settings: "PeftConfig") -> None:
    """Selects an initialization of the adapter that does not depend on the base's weights, nor changes them."""
    if isinstance(getattr(settings, "init_lora_weights", None), str):
        settings.init_lora_weights = True
