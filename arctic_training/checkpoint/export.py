"""The weights of a model of transformers as files, whole, however they are parted over the processes.

Every function is called by all processes together; only the main one keeps what is gathered, and writes.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arctic_training.checkpoint.folder import disk_errors
from arctic_training.distributed import process_group
from arctic_training.engine.deepspeed_internals import full_shape, is_partitioned_param
from arctic_training.engine.zero import gathered, is_partitioned
from arctic_training.errors.types import RecipeError
from arctic_training.progress_bars import without_progress_bars


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
        if process_group.is_main():
            with disk_errors(), without_progress_bars("transformers"):
                model.save_pretrained(folder, max_shard_size=limit)
        return
    sources = _own(model) if sources is None else sources
    if _is_converted(model):
        # weights that are fused or renamed between file and model can only be told apart when all are there
        whole = {name: tensor for name, one in sources.items() if (tensor := _keep(one.make())) is not None}
        if process_group.is_main():
            with disk_errors(), without_progress_bars("transformers"):
                model.save_pretrained(folder, state_dict=whole, max_shard_size=limit)
        return
    _stream(model, folder, limit, sources)


def dry_run_weights(model: Any, sources: Mapping[str, Source] | None = None) -> None:
    """Checks that `save_weights` would find all it needs, by shapes and a config written to a folder for the moment.

    Raises `RecipeError`.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            _describe(model, Path(folder), None)
        if sources is not None or is_partitioned(model):
            _files(model, sys.maxsize, _own(model) if sources is None else sources)
    except OSError:
        return  # the disk for the moment says nothing of that of the checkpoints
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise RecipeError(f"checkpoint.type: huggingface cannot save a {type(model).__name__}: {text}") from error


def _own(model: torch.nn.Module) -> dict[str, Source]:
    return {name: whole_tensor(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def whole_tensor(tensor: Any) -> Source:
    """Returns a weight of a model as it is, gathered when it is parted."""

    def make() -> torch.Tensor:
        with gathered([tensor]):
            # what was gathered is given back on leaving
            return tensor.detach().clone() if is_partitioned_param(tensor) else tensor.detach()  # type: ignore[no-any-return]

    return Source(torch.empty(full_shape(tensor), dtype=tensor.dtype, device="meta"), make)


def _keep(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.cpu() if process_group.is_main() else None


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
    from safetensors.torch import save_file

    plan = _files(model, limit, sources)
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename} if plan.is_sharded else None
    failed = _attempt(lambda: _describe(model, folder, index)) if process_group.is_main() else None
    for file, names in plan.filename_to_tensors.items():
        held = {name: tensor for name in names if (tensor := _keep(sources[name].make())) is not None}
        if held and not failed:
            whole = {name: tensor.contiguous() for name, tensor in held.items()}
            failed = _attempt(lambda: save_file(whole, folder / file, {"format": "pt"}))  # noqa: B023  called at once
    if failed:
        raise failed


def _files(model: Any, limit: int, sources: Mapping[str, Source]) -> Any:
    """Returns which weights go into which file, the plan of huggingface_hub."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    like = {name: source.like for name, source in sources.items()}
    for name in model._keys_to_ignore_on_save or ():
        like.pop(name, None)
    like = remove_tied_weights_from_state_dict(like, model)
    return split_torch_state_dict_into_shards(like, max_shard_size=limit, filename_pattern="model{suffix}.safetensors")


def _describe(model: Any, folder: Path, index: dict[str, Any] | None) -> None:
    """All but the weights: config, generation config, a custom model's code, and which file holds which weight."""
    with without_progress_bars("transformers"):
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
