"""The adapter of a PeftModel as files: as PEFT saves it, with its base where no other folder holds that, or merged.

Every function is called by all processes together; only the main one keeps what is gathered, and writes.
"""

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arctic_training.checkpoint.export import Source, dry_run_weights, save_weights, whole_tensor
from arctic_training.checkpoint.folder import disk_errors
from arctic_training.distributed import process_group
from arctic_training.engine.deepspeed_internals import full_shape
from arctic_training.engine.zero import gathered, is_meta_tensor_error
from arctic_training.errors.types import RecipeError

BASE = "base"
"""The folder beside an adapter that holds its base."""

_MORE_THAN_A_SUM = ("use_dora", "use_qalora", "lora_bias", "trainable_token_indices")
"""Settings of LoRA that change more of a layer than its weight."""

_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
"""What PEFT puts between a layer of the base and its weights."""


def base_changes(model: Any) -> tuple[str, ...]:
    """Returns how the base of ``model`` differs from the one that its name loads; empty where it does not."""
    return tuple(getattr(model, "base_changes", ()))


def save_adapter(model: Any, folder: Path, limit: int, *, final: Path) -> None:
    """Write the adapter, and its base in files of up to ``limit`` bytes where no name loads that; `OSError` comes last.

    ``final`` is where ``folder`` will be.
    """
    failed: OSError | None = None
    beside = bool(base_changes(model))
    with gathered(_own_parameters(model)), _described(model, str(final.absolute() / BASE) if beside else None):
        try:
            with disk_errors():
                model.save_pretrained(
                    folder, save_embedding_layers=_saves_embeddings(model), is_main_process=process_group.is_main()
                )
        except OSError as error:
            failed = error
    if beside:
        save_weights(plain_base(model), folder / BASE, limit, base_weights(model, merged=False))
    if failed:
        raise failed


def dry_run_adapter(model: Any) -> None:
    """Checks by the shapes alone that what PEFT would save loads again on the base, and holds all that is trained.

    Nothing is written. Raises `RecipeError`.
    """
    import peft

    settings = model.peft_config[model.active_adapter]
    if base_changes(model):
        dry_run_weights(plain_base(model), base_weights(model, merged=False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with gathered(_own_parameters(model)):
                state = peft.get_peft_model_state_dict(model, save_embedding_layers=_saves_embeddings(model))
                state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
            told = copy.deepcopy(settings)
            _set_plain_start(told)
            told.inference_mode = True
            loaded = peft.PeftModel(plain_base(model), told)
            result = peft.set_peft_model_state_dict(loaded, state)
    except Exception as error:
        if is_meta_tensor_error(error):
            return  # a method whose first weights follow from those of the base
        raise RecipeError(
            f"checkpoint.type: huggingface: PEFT could not load what it saves of this {_kind(model)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    names: dict[int, set[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        if one.requires_grad and not settings.is_prompt_learning:  # whose weights PEFT loads by another way
            names.setdefault(id(one), set()).add(name)
    missing = set(result.missing_keys)
    if lost := [min(one) for one in names.values() if one <= missing]:
        raise RecipeError(
            f"checkpoint.type: huggingface: PEFT leaves {len(lost)} of the weights that this {_kind(model)} trains "
            f"out of what it saves, {lost[0]} among them"
        )


def require_mergeable(model: Any) -> None:
    """Raises `RecipeError` when the adapter of ``model`` (a PeftModel) is more than a sum of weights."""
    told, base = model.peft_config[model.active_adapter], model.get_base_model()
    kind = _kind(model)
    why = "" if kind == "LORA" else f"{kind} is no sum of weights"
    why = why or ", ".join(name for name in _MORE_THAN_A_SUM if getattr(told, name, None))
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if not why and base.config.get_text_config().tie_word_embeddings:
        adapted = any(type(part).__module__.startswith("peft.") for part in ends)
        why = "embeddings that are also the output layer, of which it changes one" if adapted else ""
    if why:
        raise RecipeError(
            f"checkpoint.merge_adapter: only plain LoRA can be added to the weights, and this has {why}; leave it false"
        )


def plain_base(model: Any) -> Any:
    """Returns the base of ``model`` as it is without adapters, on no device: for its names, and to describe it."""
    base = model.get_base_model()
    with torch.device("meta"):
        plain = type(base)._from_config(copy.deepcopy(base.config))
    plain.generation_config = copy.deepcopy(base.generation_config)
    return plain


def base_weights(model: Any, *, merged: bool) -> dict[str, Source]:
    """Returns the weights of the base of ``model`` by the names that it has alone, or those with the adapter added.

    Nothing is changed in it; `require_mergeable` says what can be ``merged``. Raises `RecipeError` when not all of the
    base's weights are found.
    """
    adapter, base = model.active_adapter, model.get_base_model()
    wanted = plain_base(model).state_dict()
    sources: dict[str, Source] = {}
    for name, module in base.named_modules() if merged else ():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            weight = getattr(module, "parameter_name", "weight")  # of experts, several in one module are adapted
            sources[_WRAPPERS.sub("", f"{name}.{weight}")] = _merged(module, weight, adapter)
    for name, tensor in base.state_dict(keep_vars=True).items():
        if merged:
            if ".original_module." in name:
                continue
            name = name.replace(f".modules_to_save.{adapter}.", ".")
        if (plain := _WRAPPERS.sub("", name)) in wanted:
            sources.setdefault(plain, whole_tensor(tensor))
    if lost := [name for name in wanted if name not in sources]:
        raise RecipeError(
            f"checkpoint.type: huggingface: {_kind(model)} leaves no {lost[0]} of its base to be saved, which differs "
            f"from model.name_or_path ({', '.join(base_changes(model))}); use another method, or type deepspeed"
        )
    return sources


def _merged(layer: Any, name: str, adapter: str) -> Source:
    def make() -> torch.Tensor:
        with gathered(layer.parameters()), torch.no_grad():
            weight: torch.Tensor = getattr(layer.get_base_layer(), name)
            delta: torch.Tensor = layer.get_delta_weight(adapter)
            return weight + delta.to(weight.dtype)

    weight = getattr(layer.get_base_layer(), name)
    return Source(torch.empty(full_shape(weight), dtype=weight.dtype, device="meta"), make)


def _kind(model: Any) -> str:
    kind = model.peft_config[model.active_adapter].peft_type
    return str(getattr(kind, "value", kind))


def _saves_embeddings(model: Any) -> bool:
    """Whether the embeddings are saved with the adapter, as PEFT does when their rows are more than the base's."""
    return "vocabulary" in base_changes(model)


def _own_parameters(model: Any) -> list[nn.Parameter]:
    """Everything that may be saved with the adapter: what is trained, what the method adds, and resized embeddings."""
    prefix = getattr(model.base_model, "prefix", None)
    found = {id(one): one for name, one in model.named_parameters() if one.requires_grad or (prefix and prefix in name)}
    if _saves_embeddings(model):
        base = model.get_base_model()
        for part in filter(None, (base.get_input_embeddings(), base.get_output_embeddings())):
            found |= {id(one): one for one in part.parameters()}
    return list(found.values())


@contextmanager
def _described(model: Any, base: str | None) -> Iterator[None]:
    """Inside, the config of the adapter names ``base``, on which it is put as it was saved, if that is another."""
    told = model.peft_config[model.active_adapter]
    kept = vars(told).copy()
    if base is not None:
        told.base_model_name_or_path = base
        _set_plain_start(told)
    try:
        yield
    finally:
        vars(told).update(kept)


def _set_plain_start(settings: Any) -> None:
    """Have the first weights of the adapter not follow from those of the base, which are changed by that."""
    if isinstance(getattr(settings, "init_lora_weights", None), str):
        settings.init_lora_weights = True
