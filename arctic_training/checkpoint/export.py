"""The weights of a model of transformers as files, whole, however they are parted over the processes.

Every function is called by all processes together; only the main one keeps what is gathered, and writes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arctic_training import distributed
from arctic_training.checkpoint.folder import disk_errors
from arctic_training.engine.zero import gathered, is_partitioned, shape_of
from arctic_training.errors import RecipeError


@dataclass(frozen=True)
class Source:
    """A weight that can be had whole: `make` does so on every process, ``like`` is its shape and type on no device."""

    like: torch.Tensor
    make: Callable[[], torch.Tensor]


def save_weights(model: Any, folder: Path, limit: int, sources: Mapping[str, Source] | None = None) -> None:
    """Write ``model`` (a PreTrainedModel) in files of up to ``limit`` bytes, and its config; `OSError` comes last.

    ``sources`` stand for the model's own weights, by the names that the saved model has.
    """
    if sources is None and not is_partitioned(model):
        if distributed.is_main():
            with disk_errors(), _no_bars():
                model.save_pretrained(folder, max_shard_size=limit)
        return
    sources = _own(model) if sources is None else sources
    if _is_converted(model):
        # weights that are fused or renamed between file and model can only be told apart when all are there
        whole = {name: tensor for name, one in sources.items() if (tensor := _keep(one.make())) is not None}
        if distributed.is_main():
            with disk_errors(), _no_bars():
                model.save_pretrained(folder, state_dict=whole, max_shard_size=limit)
        return
    _stream(model, folder, limit, sources)


_MORE_THAN_A_SUM = ("use_dora", "use_qalora", "lora_bias", "trainable_token_indices", "target_parameters")
"""Settings of LoRA that change more of a layer than its weight."""


def require_mergeable(model: Any) -> None:
    """Raises `RecipeError` when the adapter of ``model`` (a PeftModel) is more than a sum of weights."""
    told = model.peft_config[model.active_adapter]
    kind, base = str(getattr(told.peft_type, "value", told.peft_type)), model.get_base_model()
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


def merged_weights(model: Any) -> dict[str, Source]:
    """The base model's weights with the adapter of ``model`` (a PeftModel with LoRA) added; nothing is changed in it.

    `require_mergeable` says for which.
    """
    adapter = model.active_adapter
    base = model.get_base_model()
    sources: dict[str, Source] = {}
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            sources[f"{name}.weight"] = _merged(module, adapter)
    for name, tensor in base.state_dict(keep_vars=True).items():
        if "lora_" in name or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(f".modules_to_save.{adapter}.", ".")
        sources.setdefault(plain, _whole(tensor))
    return sources


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """What of a PeftModel is trained, by its name in the model; empty on all processes but the main one."""
    sources = {name: _whole(one) for name, one in model.named_parameters() if one.requires_grad}
    return {name: tensor for name, one in sources.items() if (tensor := _keep(one.make())) is not None}


def _own(model: torch.nn.Module) -> dict[str, Source]:
    return {name: _whole(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def _whole(tensor: Any) -> Source:
    def make() -> torch.Tensor:
        with gathered([tensor]):
            # what was gathered is given back on leaving
            return tensor.detach().clone() if hasattr(tensor, "ds_id") else tensor.detach()  # type: ignore[no-any-return]

    return Source(torch.empty(shape_of(tensor), dtype=tensor.dtype, device="meta"), make)


def _merged(layer: Any, adapter: str) -> Source:
    def make() -> torch.Tensor:
        with gathered(layer.parameters()), torch.no_grad():
            weight: torch.Tensor = layer.get_base_layer().weight
            delta: torch.Tensor = layer.get_delta_weight(adapter)
            return weight + delta.to(weight.dtype)

    weight = layer.get_base_layer().weight
    return Source(torch.empty(shape_of(weight), dtype=weight.dtype, device="meta"), make)


def _keep(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.cpu() if distributed.is_main() else None


def _is_converted(model: Any) -> bool:
    """Whether transformers changes names or shapes of this model's weights between memory and file."""
    from transformers.core_model_loading import revert_weight_conversion

    meta = {name: torch.empty(1, device="meta") for name in model.state_dict()}
    try:
        return bool(revert_weight_conversion(model, dict(meta)).keys() != meta.keys())
    except Exception:  # a conversion that does not take such tensors is one
        return True


def _stream(model: Any, folder: Path, limit: int, sources: Mapping[str, Source]) -> None:
    """One file after the other: no more than ``limit`` bytes and one tensor are held for writing."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    like = {name: source.like for name, source in sources.items()}
    for name in model._keys_to_ignore_on_save or ():
        like.pop(name, None)
    like = remove_tied_weights_from_state_dict(like, model)
    plan = split_torch_state_dict_into_shards(like, max_shard_size=limit, filename_pattern="model{suffix}.safetensors")
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename} if plan.is_sharded else None
    failed = _attempt(lambda: _describe(model, folder, index)) if distributed.is_main() else None
    for file, names in plan.filename_to_tensors.items():
        held = {name: tensor for name in names if (tensor := _keep(sources[name].make())) is not None}
        if held and not failed:
            whole = {name: tensor.contiguous() for name, tensor in held.items()}
            failed = _attempt(lambda: save_file(whole, folder / file, {"format": "pt"}))  # noqa: B023  called at once
    if failed:
        raise failed


def _describe(model: Any, folder: Path, index: dict[str, Any] | None) -> None:
    """All but the weights: config, generation config, a custom model's code, and which file holds which weight."""
    with _no_bars():
        model.save_pretrained(folder, state_dict={})
    if index:
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _attempt(write: Callable[[], None]) -> OSError | None:
    """The disk's refusal, to be raised when the other processes no longer wait for this one."""
    try:
        with disk_errors():
            write()
    except OSError as error:
        return error
    return None


@contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
