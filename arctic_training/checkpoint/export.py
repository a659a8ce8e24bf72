"""Saves the full weights of a model of transformers or diffusers, however they are sharded over the ranks.

All ranks call every function together; only rank 0 keeps what is gathered, and writes.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arctic_training.checkpoint.folder import disk_errors
from arctic_training.display.libraries import without_progress_bars
from arctic_training.distributed import process_group
from arctic_training.engine.internals.parameters import full_shape
from arctic_training.engine.zero import gathered, is_part, is_partitioned
from arctic_training.errors.types import RecipeError

if TYPE_CHECKING:
    from huggingface_hub import StateDictSplit
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Source:
    """A weight that can be gathered."""

    like: torch.Tensor
    """Its full shape and dtype, on the meta device."""
    gather: Callable[[], torch.Tensor]
    """Returns it in full on every rank."""


Read = Callable[[Iterable[torch.Tensor]], AbstractContextManager[None]]
"""Makes parameters readable inside a block."""


def save_weights(
    model: "PreTrainedModel", folder: Path, limit: int, sources: Mapping[str, Source] | None = None
) -> None:
    """Writes ``model``, a PreTrainedModel or another one with its ``save_pretrained``, in files of up to ``limit``
    bytes, and its config.

    ``sources``, by the names in the saved model, replace the model's own weights. Raises OSError only after everything
    was gathered.
    """
    if sources is None and not is_partitioned(model):
        if process_group.is_main():
            with disk_errors(), without_progress_bars():
                model.save_pretrained(folder, max_shard_size=limit)
        return
    sources = _model_weights(model) if sources is None else sources
    if _is_converted(model):
        # weights that are fused or renamed between file and model can only be converted all together
        full = {name: tensor for name, one in sources.items() if (tensor := _on_main(one.gather())) is not None}
        if process_group.is_main():
            with disk_errors(), without_progress_bars():
                model.save_pretrained(folder, state_dict=full, max_shard_size=limit)
        return
    _stream(model, folder, limit, sources)


def stage_weights(
    model: "PreTrainedModel", folder: Path, limit: int, sources: Mapping[str, Source] | None = None
) -> Callable[[], None]:
    """Copies the weights to the memory of rank 0, and returns what `save_weights` does there with the copies."""
    sources = _model_weights(model) if sources is None else sources
    names: Iterable[str] = sources
    if not _is_converted(model):  # else all weights are converted together, tied ones too
        names = [name for some in _plan_files(model, limit, sources).filename_to_tensors.values() for name in some]
    copies: dict[str, Source] = {}
    for name in names:
        tensor = sources[name].gather()
        if process_group.is_main():
            copies[name] = _copied(sources[name].like, tensor.to("cpu", copy=True))
        del tensor
    return lambda: save_weights(model, folder, limit, copies) if copies else None


def _copied(like: torch.Tensor, tensor: torch.Tensor) -> Source:
    return Source(like, lambda: tensor)


def dry_run_weights(model: "PreTrainedModel", sources: Mapping[str, Source] | None = None) -> None:
    """Checks that `save_weights` can save ``model``, by the shapes of the weights and a config in a temporary folder.

    Raises `RecipeError` if not.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            _save_config(model, Path(folder), None)
        if (sources is not None or is_partitioned(model)) and not _is_converted(model):
            _plan_files(model, sys.maxsize, _model_weights(model) if sources is None else sources)
    except OSError:
        return  # the disk of temporary folders is another one than that of the checkpoints
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise RecipeError(f"checkpoint.type: huggingface cannot save a {type(model).__name__}: {text}") from error


def _model_weights(model: torch.nn.Module) -> dict[str, Source]:
    return {name: gatherable(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def gatherable(tensor: torch.Tensor, dtype: torch.dtype | None = None, read: Read = gathered) -> Source:
    """Returns the source of a parameter or buffer of a model, which ``read`` makes readable: by default it is gathered
    when it is sharded. A floating one is in ``dtype``; None: in its own."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def gather() -> torch.Tensor:
        with read([tensor]):
            # what was gathered is freed on leaving
            return (tensor.detach().clone() if is_part(tensor) else tensor.detach()).to(kind)

    return Source(torch.empty(full_shape(tensor), dtype=kind, device="meta"), gather)


def _on_main(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.cpu() if process_group.is_main() else None


def _is_converted(model: "PreTrainedModel") -> bool:
    """Returns whether transformers changes names or shapes of this model's weights between memory and file, or the
    model is one of another library, which saves all of them itself."""
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if not isinstance(model, PreTrainedModel):
        return True
    meta = {name: torch.empty(1, device="meta") for name in model.state_dict()}
    try:
        return bool(revert_weight_conversion(model, dict(meta)).keys() != meta.keys())
    except Exception:  # a conversion that rejects such tensors is one
        return True


def _stream(model: "PreTrainedModel", folder: Path, limit: int, sources: Mapping[str, Source]) -> None:
    """Writes one file after the other; rank 0 holds no more than ``limit`` bytes and one tensor for it."""
    from safetensors.torch import save_file

    plan = _plan_files(model, limit, sources)
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename} if plan.is_sharded else None
    failure = attempt(lambda: _save_config(model, folder, index)) if process_group.is_main() else None
    for file, names in plan.filename_to_tensors.items():
        held = {name: tensor for name in names if (tensor := _on_main(sources[name].gather())) is not None}
        if held and not failure:
            tensors = {name: tensor.contiguous() for name, tensor in held.items()}
            failure = attempt(lambda: save_file(tensors, folder / file, {"format": "pt"}))  # noqa: B023  called at once
    if failure:
        raise failure


def _plan_files(model: "PreTrainedModel", limit: int, sources: Mapping[str, Source]) -> "StateDictSplit":
    """Returns which weights go into which file: the plan of huggingface_hub."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    like = {name: source.like for name, source in sources.items()}
    for name in model._keys_to_ignore_on_save or ():
        like.pop(name, None)
    like = remove_tied_weights_from_state_dict(like, model)
    return split_torch_state_dict_into_shards(like, max_shard_size=limit, filename_pattern="model{suffix}.safetensors")


def _save_config(model: "PreTrainedModel", folder: Path, index: dict[str, Any] | None) -> None:
    """Writes all but the weights: config, generation config, a custom model's code, and the index of the files."""
    with without_progress_bars():
        model.save_pretrained(folder, state_dict={})
    if index:
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def attempt(write: Callable[[], None]) -> OSError | None:
    """Returns the error of the disk, to be raised when the other ranks no longer wait for this one."""
    try:
        with disk_errors():
            write()
    except OSError as error:
        return error
    return None
