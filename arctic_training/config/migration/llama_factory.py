"""Recipes of LLaMA-Factory's configurations: the YAML file of ``llamafactory-cli train``."""

import json
from collections.abc import Mapping

from arctic_training.config.migration.foreign import Foreign, as_list
from arctic_training.config.migration.sections import (
    Source,
    as_integer,
    mapping,
    note_quantization,
    preference_loss,
    put_held_out,
    put_lora,
    put_sources,
    source,
)
from arctic_training.config.migration.training_arguments import dtype_of, migrate_training_arguments
from arctic_training.errors.types import InputError

_TRAINERS = {"pt": "causal", "sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "kto", "ppo": "ppo"}
_OTHER_TASKS = ("do_predict", "do_eval", "export_dir", "infer_backend")
_WITHOUT_EFFECT = (
    "stage finetuning_type flash_attn attn preprocessing_num_workers preprocessing_batch_size overwrite_cache "
    "tokenized_path cache_dir use_fast_tokenizer low_cpu_mem_usage upcast_layernorm print_param_status "
    "include_mfu adapter_name_or_path additional_target do_predict predict_with_generate sequence_parallel_mode "
    "dataset_dir media_dir packing neat_packing template rope_scaling quantization_method"
)


def migrate_llama_factory(foreign: Foreign, trainer: str = "") -> None:
    """Carries a configuration of LLaMA-Factory over to a recipe of ``trainer``, by default that of its ``stage``.

    Raises `InputError` for one that does not train: those of inference, export and prediction.
    """
    if foreign.values.get("do_train") is not True and any(foreign.values.get(key) for key in _OTHER_TASKS):
        raise InputError("a configuration of LLaMA-Factory without do_train, for prediction or export, trains nothing")
    stage = str(foreign.take("stage") or "sft")
    kind = trainer or _TRAINERS.get(stage, "")
    if not kind:
        foreign.note("stage", f"{stage}: there is no such trainer; sft stands for it")
    kind = kind or "sft"
    foreign.put("type", kind)
    _model(foreign)
    _adapter(foreign)
    _data(foreign, kind)
    migrate_training_arguments(foreign, patience="early_stopping_steps")
    _objective(foreign, kind)
    foreign.move({"sequence_parallel_size": "sequence_parallel_size"})
    foreign.ignore(_WITHOUT_EFFECT.split())


def _model(foreign: Foreign) -> None:
    foreign.move({"model_name_or_path": "model.name_or_path", "trust_remote_code": "model.trust_remote_code"})
    foreign.move({"resize_vocab": "model.resize_vocabulary"})
    foreign.put("model.dtype", dtype_of(foreign))
    if foreign.flag("enable_liger_kernel"):
        foreign.put("model.type", "liger")
    if foreign.flag("disable_gradient_checkpointing"):
        foreign.put("model.activation_checkpointing", False)
    note_quantization(foreign, "quantization_bit")
    if foreign.take("adapter_name_or_path"):
        foreign.note("adapter_name_or_path", "give its folder as model.name_or_path: it is merged into its base")
    if foreign.take("rope_scaling"):
        foreign.note("rope_scaling", "give model.hf_config_kwargs: {rope_scaling: {...}} in the words of transformers")


def _adapter(foreign: Foreign) -> None:
    finetuning = str(foreign.take("finetuning_type") or "lora")
    if finetuning == "lora":
        rank = as_integer(foreign.take("lora_rank")) or 8
        put_lora(
            foreign,
            rank=rank,
            alpha=as_integer(foreign.take("lora_alpha")) or 2 * rank,
            dropout=foreign.take("lora_dropout"),
            targets=foreign.take("lora_target"),
            modules_to_save=as_list(foreign.take("additional_target")),
            use_rslora=foreign.flag("use_rslora"),
            use_dora=foreign.flag("use_dora"),
        )
        if foreign.flag("pissa_init"):
            foreign.put("model.peft_config.init_lora_weights", "pissa")
    elif finetuning != "full":
        foreign.note("finetuning_type", f"{finetuning}: all weights are trained instead")


def _data(foreign: Foreign, kind: str) -> None:
    limit = as_integer(foreign.take("max_samples"))
    for key, ours in (("dataset", "sources"), ("eval_dataset", "eval_sources")):
        put_sources(foreign, [_source(foreign, key, str(name), limit) for name in as_list(foreign.take(key))], ours)
    _mixture(foreign)
    put_held_out(foreign, "val_size")
    length = as_integer(foreign.take("cutoff_len")) or 2048
    completion = as_integer(foreign.values.get("max_new_tokens")) or 1024
    foreign.put("data.max_length", length + completion if kind == "ppo" else length)
    masks_history = kind == "sft" and not foreign.flag("train_on_prompt") and foreign.flag("mask_history")
    if masks_history:
        foreign.put("data.mask_history", True)
        foreign.note("mask_history", "a conversation longer than cutoff_len is dropped; there it loses its beginning")
    if kind in ("sft", "causal"):
        foreign.put("data.filter_samples", None if masks_history else False)
        packs = foreign.flag("neat_packing") or foreign.take("packing")
        foreign.put("data.pack_samples", True if packs or (packs is None and kind == "causal") else None)
    if foreign.flag("packing") and not foreign.flag("neat_packing") and kind == "sft":
        foreign.note("packing", "chats in one row do not see each other, as with neat_packing")
    if foreign.flag("train_on_prompt"):
        foreign.put("data.mask_inputs", False)
    if foreign.take("template") not in (None, "default") and kind != "causal":
        foreign.note("template", f"{foreign.take('template')}: the tokenizer's own chat template is used")


def _mixture(foreign: Foreign) -> None:
    """Carries over a stream of rows, and the shares in which data sets are mixed."""
    sources = mapping(foreign.recipe.get("data")).get("sources")
    if not isinstance(sources, list):
        return
    streams, mixes = foreign.flag("streaming"), str(foreign.take("mix_strategy") or "concat")
    mixed = mixes.startswith("interleave")
    shares = [Foreign({"share": one}).number("share") for one in as_list(foreign.take("interleave_probs"))]
    weights = shares if mixed and len(shares) == len(sources) else [1.0 if mixed else None] * len(sources)
    more = [
        {key: value for key, value in (("streaming", streams or None), ("weight", weight)) if value is not None}
        for weight in weights
    ]
    sections = [one if isinstance(one, dict) else {"name_or_path": one} for one in sources]
    put_sources(foreign, [section | words for section, words in zip(sections, more, strict=True)])
    foreign.ignore(["buffer_size", "interleave_probs"])


def _source(foreign: Foreign, key: str, name: str, limit: int | None) -> Source:
    """Returns the source of a data set that ``dataset_info.json`` names, whose file is read where it is found."""
    folder = str(foreign.take("dataset_dir") or "data")
    folder = "data" if folder.startswith(("REMOTE:", "ONLINE")) else folder
    places = [base / folder / "dataset_info.json" for base in (foreign.folder, foreign.folder.cwd())]
    file = next((one for one in places if one.is_file()), None)
    entry: Mapping[str, object] = {}
    if file is not None:
        try:
            entry = mapping(mapping(json.loads(file.read_text(encoding="utf-8"))).get(name))
        except (OSError, ValueError):
            foreign.note("dataset_dir", f"{file}: cannot be read")
    split = f"train[:{limit}]" if limit is not None else entry.get("split")
    if "file_name" in entry:
        return source(f"{folder}/{entry['file_name']}", split=split)
    if remote := entry.get("hf_hub_url") or entry.get("ms_hub_url"):
        return source(remote, split=split, subset=entry.get("subset"))
    foreign.note(key, f"{name}: give the file of this name in dataset_info.json")
    return source(f"{folder}/{name}.json", split=split)


def _objective(foreign: Foreign, kind: str) -> None:
    if kind in ("dpo", "kto"):
        foreign.put("beta", foreign.number("pref_beta") or 0.1)
        foreign.move({"pref_ftx": "sft_weight"} if kind == "dpo" else {})
    if kind == "dpo":
        loss = preference_loss(foreign, "pref_loss", foreign.take("pref_loss") or "sigmoid")
        foreign.put("loss_type", loss)
        foreign.move({"simpo_gamma": "simpo_gamma"} if loss == "simpo" else {})
        foreign.move({"dpo_label_smoothing": "label_smoothing"})
    if kind == "kto":
        foreign.move({"kto_chosen_weight": "desirable_weight", "kto_rejected_weight": "undesirable_weight"})
    if kind in ("dpo", "kto", "ppo") and foreign.values.get("ref_model"):
        foreign.put("ref_model", {"name_or_path": foreign.take("ref_model")})
    if kind in ("sft", "causal"):
        foreign.move({"label_smoothing_factor": "label_smoothing"})
    if kind == "reward":
        foreign.put("model.new_weights", ["score"])
    if kind == "ppo":
        foreign.put("rewards", [{"type": "model", "name_or_path": str(foreign.take("reward_model") or "reward_model")}])
        foreign.put("critic", {"new_weights": ["score"]})
        foreign.move({"max_new_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p"})
        foreign.move({"top_k": "top_k", "ppo_epochs": "num_iterations"})
