"""Loads a model and its tokenizer from what a run left, or from anything that transformers or PEFT can load."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from arctic_training.checkpoint.consolidated import ConsolidatedWeights, load_consolidated
from arctic_training.checkpoint.saved_model import NO_AVERAGE, SavedModel, find_saved_model
from arctic_training.config.sections.model import DType
from arctic_training.deployment.run_recipe import blueprint, read_run_recipe
from arctic_training.engine.dtypes import DTYPES
from arctic_training.errors.types import InputError
from arctic_training.model.pretrained import Pretrained
from arctic_training.model.pretrained_adapter import PretrainedAdapter
from arctic_training.model.tasks import task_of_config
from arctic_training.tokenizer.huggingface_factory import has_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loaded = tuple["PreTrainedModel", "PreTrainedTokenizerBase | None"]


def load_pretrained(
    name: str | Path,
    *,
    best: bool = False,
    dtype: DType | None = None,
    device: str | torch.device | None = None,
    averaged: bool = False,
    recipe: Path | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Returns a model in evaluation mode and its tokenizer, None where there is none.

    ``name`` is what `find_saved_model` finds: a folder of transformers, a folder of an adapter, which is put on its
    base, a checkpoint of any type, a run folder, or a name on the hub. ``dtype`` is that of the weights, by default
    the one they are saved in; ``device`` a GPU where there is one. A checkpoint of type ``deepspeed`` is built by the
    recipe of its run folder, or by ``recipe``, and filled one weight at a time; ``averaged`` takes the average of the
    callback `ema` in place of the weights. Raises `InputError` and `CheckpointError`.
    """
    return load_saved_model(
        find_saved_model(str(name), best=best),
        dtype=dtype,
        device=device,
        averaged=averaged,
        recipe=recipe,
        trust_remote_code=trust_remote_code,
    )


def load_network(
    name: str | Path,
    *,
    best: bool = False,
    dtype: DType | None = None,
    device: str | torch.device | None = None,
    averaged: bool = False,
    recipe: Path | None = None,
) -> nn.Module:
    """Returns the network of a checkpoint of type ``deepspeed``, of any kind, in evaluation mode.

    ``name`` is the checkpoint, or a run folder, of which it is the newest, or with ``best`` the best. The other
    arguments are those of `load_pretrained`. Raises `InputError` and `CheckpointError`.
    """
    saved = find_saved_model(str(name), best=best)
    if saved.kind != "deepspeed":
        raise InputError(
            f"{saved.name}: no checkpoint of type deepspeed; load_pretrained loads a model of transformers"
        )
    return _placed(_load_checkpoint(saved, dtype, averaged, recipe)[0], device)


def load_saved_model(
    saved: SavedModel,
    *,
    dtype: DType | None = None,
    device: str | torch.device | None = None,
    averaged: bool = False,
    recipe: Path | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Returns the model ``saved`` and its tokenizer; see `load_pretrained`. Raises as that does."""
    if averaged and saved.kind != "deepspeed":
        raise InputError(f"{saved.name}: {NO_AVERAGE}")
    if saved.kind == "deepspeed":
        model, tokenizer = _load_checkpoint(saved, dtype, averaged, recipe)
        if not (hasattr(model, "save_pretrained") and hasattr(model, "config")):
            raise InputError(
                f"{saved.name}: a {type(model).__name__}, which transformers does not know; use load_network"
            )
    else:
        model, tokenizer = _load_folder(saved, dtype, trust_remote_code)
    return cast("PreTrainedModel", _placed(model, device)), tokenizer


def _placed(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    return model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()


def _load_folder(saved: SavedModel, dtype: DType | None, trust_remote_code: bool) -> Loaded:
    source_type = PretrainedAdapter if saved.kind == "adapter" else Pretrained
    source = source_type(saved.name, trust_remote_code=trust_remote_code, key="checkpoint")
    config, _ = source.config({})
    auto_class = task_of_config(config).load_auto_class()
    options = {"dtype": DTYPES[dtype] if dtype is not None else "auto"}
    if isinstance(source, PretrainedAdapter):
        model = source.adapted(auto_class, config, options)
    else:
        model = source.from_pretrained(auto_class, config, options)
    return cast("PreTrainedModel", model), load_tokenizer_of(saved, source.name, trust_remote_code)


def load_tokenizer_of(saved: SavedModel, base: str, trust_remote_code: bool) -> "PreTrainedTokenizerBase | None":
    """Returns the tokenizer of the folder ``saved``, or of the ``base`` of an adapter that has none of its own; None
    where neither has one. Raises `ModelError` for one that cannot be read."""
    for name in dict.fromkeys([saved.name, base]):
        folder = Path(name).expanduser()
        if not folder.is_dir() or has_tokenizer(folder):
            return load_tokenizer(name, "checkpoint", trust_remote_code=trust_remote_code)
    return None


def _load_checkpoint(
    saved: SavedModel, dtype: DType | None, averaged: bool, recipe: Path | None
) -> "tuple[nn.Module, PreTrainedTokenizerBase | None]":
    weights = ConsolidatedWeights(Path(saved.name), averaged=averaged)
    plan = blueprint(read_run_recipe(saved, recipe), dtype)
    model = plan.build()
    load_consolidated(model, weights)
    return model, plan.tokenizer
