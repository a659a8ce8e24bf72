"""Writes a saved model as a folder that transformers, and what serves its models, can load, or diffusers; adapters are
merged."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from arctic_training.checkpoint.adapter import base_weights, plain_base, unmergeable
from arctic_training.checkpoint.consolidated import ConsolidatedWeights
from arctic_training.checkpoint.export import Read, Source, save_weights
from arctic_training.checkpoint.folder import MANIFEST, disk_errors, list_files, reset_permissions
from arctic_training.checkpoint.saved_model import NO_AVERAGE, SavedModel
from arctic_training.config.sections.model import DType
from arctic_training.data.tokenization.closing_tokens import add_end_tokens
from arctic_training.deployment.load import load_saved_model, load_tokenizer_of
from arctic_training.deployment.model_card import model_card
from arctic_training.deployment.run_recipe import blueprint, read_run_recipe
from arctic_training.deployment.verify_merge import MergeReport, verify_merge
from arctic_training.engine.dtypes import DTYPES
from arctic_training.errors.types import InputError
from arctic_training.model.pretrained_adapter import PretrainedAdapter
from arctic_training.model.tasks import task_of_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

_COPIED = (".json", ".txt", ".jinja", ".py", ".model")
"""Suffixes of files beside the weights that belong to a model, such as those of sentence-transformers."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    dtype: DType | None = None
    """The dtype of the weights; None: that in which they are saved."""
    max_shard_size: int = 5_000_000_000
    """Bytes of weights in one file."""
    averaged: bool = False
    """Export the average of the callback `ema` in place of the weights."""
    recipe: Path | None = None
    """The recipe of a checkpoint of type deepspeed that is not in its run folder."""
    trust_remote_code: bool = False
    """Run the Python code in the folder of the model."""
    repository: str = ""
    """The name on the hub from which the model is to be loaded, for its card; empty: its folder."""


def export(saved: SavedModel, folder: Path, options: ExportOptions) -> MergeReport | None:
    """Writes the model ``saved`` to the new ``folder``; returns how near a merged adapter is to the original.

    A checkpoint of type ``deepspeed`` is read one weight at a time, and no more than one file of the export is in
    memory. An adapter is merged in fp32; then logits before and after are compared, for which the model is loaded.
    Nothing is left in ``folder`` when that fails. Raises `InputError`, `CheckpointError` and OSError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; give another folder, or remove it")
    unfinished = folder.parent / f".unfinished-{folder.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with disk_errors():
            is_adapter = _write(saved, unfinished, options)
            report = _verify(saved, unfinished, options) if is_adapter else None
            card = model_card(saved, unfinished, report, options.repository or str(folder))
            (unfinished / "README.md").write_text(card, encoding="utf-8")
            reset_permissions(unfinished, list_files(unfinished))
            if folder.exists():
                folder.rmdir()
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _write(saved: SavedModel, folder: Path, options: ExportOptions) -> bool:
    """Writes weights, configs and tokenizer, and returns whether an adapter was merged."""
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    if saved.kind == "deepspeed":
        return _write_checkpoint(saved, folder, options, dtype)
    if options.averaged:
        raise InputError(f"{saved.name}: {NO_AVERAGE}")
    if saved.kind == "model":
        model, tokenizer = load_saved_model(
            saved, dtype=options.dtype, device="cpu", trust_remote_code=options.trust_remote_code
        )
        save_weights(model, folder, options.max_shard_size)
        _copy_other_files(Path(saved.name).expanduser(), folder)
        _save_tokenizer(tokenizer, folder)
        return False
    source = PretrainedAdapter(saved.name, trust_remote_code=options.trust_remote_code, key="checkpoint")
    config, _ = source.config({})
    adapted = source.adapted(task_of_config(config).load_auto_class(), config, {"dtype": "auto"}, fp32=True)
    tokenizer = load_tokenizer_of(saved, source.name, options.trust_remote_code)
    add_end_tokens(adapted.get_base_model(), tokenizer, {})
    _write_merged(adapted, folder, options, base_weights(_mergeable(adapted), merged=True, dtype=dtype), dtype)
    _save_tokenizer(tokenizer, folder)
    return True


def _write_checkpoint(saved: SavedModel, folder: Path, options: ExportOptions, dtype: torch.dtype | None) -> bool:
    weights = ConsolidatedWeights(Path(saved.name), averaged=options.averaged)
    plan = blueprint(read_run_recipe(saved, options.recipe))
    model = plan.on_meta_device()
    if model is None or not hasattr(model, "save_pretrained"):
        raise InputError(
            f"{saved.name}: the model of its recipe cannot be built without weights, or is none of transformers or "
            "diffusers; export a checkpoint of type huggingface"
        )
    is_adapter = hasattr(model, "peft_config")
    if is_adapter:
        _mergeable(model)
        _replace_by_placeholders(model)
        sources = base_weights(model, merged=True, dtype=dtype, read=_reader(model, weights))
        _write_merged(model, folder, options, sources, dtype)
    else:
        sources = _sources(model, weights, dtype)
        save_weights(model if dtype is None else model.to(dtype), folder, options.max_shard_size, sources)
    for name, text in plan.export_files(model).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    _save_tokenizer(plan.tokenizer, folder)
    return is_adapter


def _write_merged(
    model: "PeftModel", folder: Path, options: ExportOptions, sources: Mapping[str, Source], dtype: torch.dtype | None
) -> None:
    kind = dtype or next(source.like.dtype for source in sources.values() if source.like.is_floating_point())
    save_weights(plain_base(model).to(kind), folder, options.max_shard_size, sources)


def _mergeable(model: "PeftModel") -> "PeftModel":
    """Returns ``model``. Raises `InputError` for an adapter that is more than a sum of weights."""
    if why := unmergeable(model):
        raise InputError(f"only plain LoRA can be merged, and this has {why}; serve it as an adapter on its base")
    return model


def _sources(model: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Source]:
    """Returns the sources of the weights of ``model``, which is on the meta device, each read when it is written."""
    names = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}
    sources = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        own = names[id(tensor)]  # tied weights are saved by one name
        sources[name] = Source(torch.empty(tensor.shape, dtype=kind, device="meta"), partial(_read, weights, own, kind))
    return sources


def _read(weights: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    return weights[name].to(dtype)


def _replace_by_placeholders(model: nn.Module) -> None:
    """Replaces parameters and buffers on the meta device by ones on the CPU that take no memory and can be assigned."""
    placeholders: dict[int, Tensor] = {}

    def placeholder(tensor: Tensor) -> Tensor:
        if id(tensor) not in placeholders:
            empty = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            own = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
            placeholders[id(tensor)] = own
        return placeholders[id(tensor)]

    kept = [*model.parameters(), *model.buffers()]  # while their ids are in use
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    held[name] = placeholder(tensor)  # type: ignore[assignment]
    del kept


def _reader(model: nn.Module, weights: Mapping[str, Tensor]) -> Read:
    """Returns what reads parameters of ``model`` from ``weights``, by their names, for as long as they are needed."""
    names = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}

    @contextmanager
    def read(tensors: Iterable[Tensor]) -> Iterator[None]:
        held = [(tensor, tensor.data) for tensor in tensors]
        try:
            for tensor, _ in held:
                tensor.data = weights[names[id(tensor)]]
            yield
        finally:
            for tensor, placeholder in held:
                tensor.data = placeholder

    return read


def _verify(saved: SavedModel, folder: Path, options: ExportOptions) -> MergeReport:
    """Compares the merged model in ``folder`` with the adapter on its base, one after the other in memory."""
    trust = options.trust_remote_code

    def adapted() -> "PeftModel":
        model, _ = load_saved_model(
            saved, averaged=options.averaged, recipe=options.recipe, device="cpu", trust_remote_code=trust
        )
        return model

    return verify_merge(
        adapted,
        lambda: load_saved_model(SavedModel(str(folder), "model"), device="cpu", trust_remote_code=trust)[0],
    )


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase | None", folder: Path) -> None:
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _copy_other_files(source: Path, folder: Path) -> None:
    """Copies what belongs to a model beside its weights and configs, and what says under which license it is."""
    parts = [source, *(one for one in source.glob("*/") if not any(one.glob("*.safetensors")))]  # others are models
    for path in (path for part in parts for path in sorted(part.glob("*"))):
        target = folder / path.relative_to(source)
        belongs = path.suffix in _COPIED or path.name.startswith(("LICENSE", "NOTICE"))
        is_other = path.name == MANIFEST or path.name.endswith(".index.json")
        if path.is_file() and belongs and not is_other and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
